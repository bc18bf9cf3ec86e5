"""`beit embed`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.embed import EmbedConfig

_FEW = 6  # numbers of a line


def _run(config: EmbedConfig, console: CommandConsole) -> None:
    from beitcli.engine.embed import embed
    from beitcli.engine.io.feature_files import with_numbers
    from beitcli.engine.io.output_paths import is_stdout

    is_picture = config.output != "-" and is_stdout(config.output)
    for document in embed(config, console.on_event, console.stdin):
        if is_picture:  # that stream is the picture's alone
            continue
        if console.wants_json:
            console.print_json(with_numbers(document))
        elif "neighbours" in document:
            console.print_rows(document["neighbours"], "No other image is there to compare with.")
            if document["output"]:
                console.print_line(document["output"])
        else:
            console.print_line(f"{document['path']}  {_said(document)}")


def _said(document: dict[str, Any]) -> str:
    """What a document says of an image, in a line: the first numbers of its feature."""
    if "error" in document:
        return f"error: {document['error']}"
    from beitcli.engine.io.feature_files import as_numbers

    features, patches = document["features"], ""
    if features.ndim > 1:
        features, patches = features[0], f"{len(features)} x "
    first = " ".join(f"{number:.3f}" for number in as_numbers(features[:_FEW]))
    return f"{patches}{len(features)} numbers: {first}{' ...' if len(features) > _FEW else ''}"


DECLARATION = Declaration(
    config=EmbedConfig,
    examples=(
        "beit embed runs/mine photos/ -o features.parquet",
        "beit embed runs/mine photos/ --layer 9 --pool cls --json | head -1",
        "beit embed runs/mine photos/ --query photo.jpg -o nearest.jpg",
        "beit embed runs/mine photos/ --query photo.jpg --preview     in the terminal",
        "beit embed runs/mine features.parquet --query photo.jpg     without computing them again",
    ),
    run=_run,
)
