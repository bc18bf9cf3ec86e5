"""The jobs as Python functions, for scripts and notebooks; `import beitcli` gives them all.

    import beitcli
    report = beitcli.pretrain("photos/", recipe="small", steps=100)

Each takes data and settings by keyword, named as in TOML (`batch_size`, the flag `--batch-size`), or a config object.
Settings are resolved as on the command line, keyword > `config="FILE.toml"` > `recipe` > default, with one layer left
out: `BEIT_*` environment variables set nothing here, so that a script means the same wherever it runs.

Progress is shown on stderr as by the command line; `progress=False` is silent, and `on_event` receives the events
(`beitcli.engine.events`) instead. What a user can mend is raised as BeitError, the way out as a note of the exception.
"""
