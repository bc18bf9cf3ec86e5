"""The commands as Python functions, for scripts and notebooks; `import beitcli` exports them all.

    import beitcli
    report = beitcli.pretrain("photos/", recipe="small", steps=100)

Each function takes data and settings by keyword, named as in TOML (`batch_size` for `--batch-size`), or a config.
Settings are resolved as on the command line, keyword > `config="FILE.toml"` > `recipe` > default, except that `BEIT_*`
environment variables are ignored, so that a script does the same on every machine.

Progress is shown on stderr as by the command line. `progress=False` hides it; `on_event` receives the events
(`beitcli.engine.events`) instead. Errors that a user can fix are raised as BeitError, with the fix as a note of the
exception.
"""
