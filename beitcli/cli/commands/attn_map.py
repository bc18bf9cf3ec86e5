"""`beit attn-map`."""

from __future__ import annotations

from pathlib import Path

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.cli.lines_at_end import lines_at_end
from beitcli.config.attn_map import AttnMapConfig


def _run(config: AttnMapConfig, console: CommandConsole) -> None:
    from beitcli.engine.attn_map import attn_map
    from beitcli.engine.io.output_paths import is_stdout

    is_picture = is_stdout(config.output)  # that stream is the picture's alone
    with lines_at_end(console) as tell_at_end:
        for document in attn_map(config, console.on_event, console.stdin):
            if is_picture:
                console.tell_reason(document)
            elif console.wants_json:
                console.print_json(document)
            elif "error" in document:
                console.print_line(f"{document['path']}  error: {document['error']}")
            elif config.output is None:
                console.print_line(
                    f"{document['path']}  {len(document['maps'])} maps; -o PICTURE draws them, --json prints them"
                )
            elif Path(document["output"]) == Path(config.output):  # of one image, or of all
                tell_at_end(document["output"])
            else:
                console.print_line(document["output"])


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
