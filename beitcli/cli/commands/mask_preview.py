"""`beit mask-preview`."""

from __future__ import annotations

from beitcli.cli.console import Shell
from beitcli.cli.options import Command
from beitcli.config.mask_preview import MaskPreviewConfig


def _run(config: MaskPreviewConfig, shell: Shell) -> None:
    from beitcli.engine.mask_preview import mask_preview, mask_preview_statistics

    if config.stats:
        shell.document(mask_preview_statistics(config))
        return
    for preview in mask_preview(config, shell.on_event, shell.stdin):
        document = preview.document
        if config.output == "-" and preview.picture is not None:
            shell.picture(preview.picture)
        elif shell.wants_json:
            shell.document(document)
        elif "error" in document:
            shell.line(f"{document['path']}  error: {document['error']}")
        else:
            rows, columns = document["grid"]
            shell.line(f"{document['path']}  {document['num_masked']} of {rows * columns} patches hidden")
            shell.line("\n".join("".join("██" if hidden else "··" for hidden in row) for row in document["mask"]))
            if document["output"]:
                shell.line(document["output"])


COMMAND = Command(
    config=MaskPreviewConfig,
    summary="Show what pretraining hides of an image.",
    examples=(
        "beit mask-preview photo.jpg -o masked.png",
        "beit mask-preview photo.jpg --model runs/mine -o rebuilt.png",
        "beit mask-preview --stats 20000 --num-masked 75",
    ),
    face=_run,
    panel="Look",
)
