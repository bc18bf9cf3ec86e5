"""`beit predict`."""

from __future__ import annotations

from beitcli.cli.console import Shell
from beitcli.cli.options import Command
from beitcli.config.predict import PredictConfig


def _run(config: PredictConfig, shell: Shell) -> None:
    from beitcli.engine.predict import predict

    for document in predict(config, shell.on_event, shell.stdin):
        if shell.wants_json:
            shell.document(document)
        elif "error" in document:
            shell.line(f"{document['path']}  error: {document['error']}")
        elif "detections" in document:
            found = "  ".join(f"{each['label']} {each['score']:.3f}" for each in document["detections"][:5])
            shell.line(f"{document.get('output', document['path'])}  {found or 'nothing'}")
        elif "output" in document:
            shares = "  ".join(f"{name} {share:.3f}" for name, share in list(document["classes"].items())[:5])
            shell.line(f"{document['output']}  {shares}")
        else:
            top = "  ".join(f"{label} {score:.3f}" for label, score in document["top"])
            shell.line(f"{document['path']}  {top}")


COMMAND = Command(
    config=PredictConfig,
    summary="Classify images, write masks of them, or find objects in them, with a finetuned model.",
    examples=(
        "beit predict runs/classifier photo.jpg",
        "beit predict runs/segmenter photo.jpg -o masks/ --overlay",
        "beit predict runs/detector photo.jpg -o boxes/ --score-threshold 0.7",
        "find . -name '*.jpg' -print0 | beit predict runs/classifier -0 -",
    ),
    face=_run,
    panel="Use",
)
