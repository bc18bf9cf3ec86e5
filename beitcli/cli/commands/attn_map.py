"""`beit attn-map`."""

from __future__ import annotations

from beitcli.cli.console import CommandConsole
from beitcli.cli.options import Command
from beitcli.config.attn_map import AttnMapConfig


def _run(config: AttnMapConfig, console: CommandConsole) -> None:
    from beitcli.engine.attn_map import attn_map
    from beitcli.engine.io.outputs import is_stdout

    is_picture = is_stdout(config.output)  # that stream is the picture's alone
    for document in attn_map(config, console.on_event, console.stdin):
        if is_picture:
            continue
        if console.wants_json:
            console.print_json(document)
        elif "error" in document:
            console.print_line(f"{document['path']}  error: {document['error']}")
        else:
            console.print_line(
                document["output"] or f"{document['path']}  {len(document['maps'])} maps; --json shows them"
            )


COMMAND = Command(
    config=AttnMapConfig,
    summary="Draw what a BEiT attends to from points of an image.",
    examples=(
        "beit attn-map photo.jpg --model runs/mine -o attention.png",
        "beit attn-map photo.jpg --model runs/mine --point 120,80 --head all -o heads.png",
        "beit attn-map photo.jpg --model runs/mine -o attention.html     a page to explore",
    ),
    face=_run,
    panel="Look",
)
