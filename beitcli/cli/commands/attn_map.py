"""`beit attn-map`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.attn_map import AttnMapConfig


def _run(config: AttnMapConfig, console: CommandConsole) -> None:
    from beitcli.engine.attn_map import attn_map
    from beitcli.engine.io.output_paths import is_stdout

    is_picture = is_stdout(config.output)  # that stream is the picture's alone
    last = None
    for document in attn_map(config, console.on_event, console.stdin):
        if is_picture:
            console.tell_reason(document)
            continue
        if console.wants_json:
            console.print_json(document)
        elif "error" in document:
            console.print_line(f"{document['path']}  error: {document['error']}")
        elif document["output"] is None:
            console.print_line(
                f"{document['path']}  {len(document['maps'])} maps; -o PICTURE draws them, --json prints them"
            )
        elif document["output"] != last:  # a page of several images is told once
            last = document["output"]
            console.print_line(last)


DECLARATION = Declaration(
    config=AttnMapConfig,
    examples=(
        "beit attn-map photo.jpg --model runs/mine -o attention.png",
        "beit attn-map photo.jpg --model runs/mine --point 120,80 --head all -o heads.png",
        "beit attn-map photo.jpg --model runs/mine --preview     in the terminal",
        "beit attn-map photos/*.jpg --model runs/mine -o attention.html     a page to explore",
        "beit attn-map photos/*.jpg --model runs/mine -o figure.pdf     as the paper's Figure 2",
    ),
    run=_run,
)
