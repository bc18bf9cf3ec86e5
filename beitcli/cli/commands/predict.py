"""`beit predict`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.predict import PredictConfig

_FEW = 5  # classes or objects of a line


def _run(config: PredictConfig, console: CommandConsole) -> None:
    from beitcli.engine.predict import predict

    for document in predict(config, console.on_event, console.stdin):
        if console.wants_json:
            console.print_json(document)
        else:
            style = "" if "error" in document else "bold"
            console.print_about(document.get("output", document["path"]), _said(document), style)


def _said(document: dict[str, Any]) -> list[str]:
    """What a document says of an image, the best first: its classes, its objects, or else its numbers."""
    if "error" in document:
        return [f"error: {document['error']}"]
    if "detections" in document:
        pairs = [(each["label"], each["score"]) for each in document["detections"][:_FEW]]
        if not pairs:
            return ["nothing"]
    elif "labels" in document:
        pairs = document["labels"][:_FEW]
        if not pairs:
            return ["none"]
    elif "top" in document:
        pairs = document["top"]
    else:
        numbers = {name: value for name, value in document.items() if isinstance(value, float)}
        pairs = list(document.get("classes", numbers).items())[:_FEW]
    return [f"{name} {value:.3f}" for name, value in pairs]


DECLARATION = Declaration(
    config=PredictConfig,
    examples=(
        "beit predict runs/classifier photo.jpg",
        "beit predict runs/segmenter photo.jpg -o masks/ --overlay",
        "beit predict runs/detector photo.jpg -o boxes/ --score-threshold 0.7",
        "find . -name '*.jpg' -print0 | beit predict runs/classifier -0 -",
    ),
    run=_run,
)
