"""`beit mask-preview`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.mask_preview import MaskPreviewConfig


def _run(config: MaskPreviewConfig, console: CommandConsole) -> None:
    is_picture = _goes_to_stdout(config.output)  # that stream is the picture's alone
    if config.animate:
        from beitcli.engine.run_previews import animate_previews

        animation = animate_previews(config)
        if is_picture:
            return
        if console.wants_json:
            console.print_whole_result(animation)
        else:
            console.print_line(f"{animation['output']}  {len(animation['steps'])} previews")
        return
    if config.stats:
        from beitcli.engine.previewed_masks import mask_preview_statistics

        statistics = mask_preview_statistics(config)
        if not is_picture:
            console.print_whole_result(statistics)
        return
    from beitcli.engine.mask_preview import mask_preview

    last = None
    for preview in mask_preview(config, console.on_event, console.stdin):
        document = preview.document
        if is_picture:
            console.tell_reason(document)
            if preview.picture is not None:
                console.picture(preview.picture)
        elif console.wants_json:
            console.print_json(document)
        elif "error" in document:
            console.print_about(document["path"], [f"error: {document['error']}"])
        else:
            console.print_about(document["path"], [_said(document, config)])
            if config.output is None and not console.has_drawn:
                console.print_text(
                    "\n".join("".join("██" if hidden else "··" for hidden in row) for row in document["mask"])
                )
            if document["output"] not in (None, last):  # a sheet of several images is told once
                last = document["output"]
                console.print_line(last)


def _said(document: dict[str, Any], config: MaskPreviewConfig) -> str:
    """What a document says of an image, in a line."""
    rows, columns = document["grid"]
    hidden, accuracy = document["num_masked"], document.get("masked_accuracy")
    said = f"{hidden} of {rows * columns} patches hidden"
    if accuracy is not None:
        return f"{said}, {round(accuracy * hidden)} of their tokens guessed right ({accuracy:.0%})"
    if config.model is not None and config.output is None and not config.preview:
        return f"{said}; -o PICTURE draws what the model guesses there"
    return said


def _goes_to_stdout(output: str | None) -> bool:
    if output is None:  # whose import a summary of masks does without
        return False
    from beitcli.engine.io.output_paths import is_stdout

    return is_stdout(output)


DECLARATION = Declaration(
    config=MaskPreviewConfig,
    examples=(
        "beit mask-preview photo.jpg --recipe small -o masked.png",
        "beit mask-preview photo.jpg --model runs/mine -o rebuilt.png",
        "beit mask-preview photos/ --limit 6 --model runs/mine -o sheet.jpg",
        "beit mask-preview photo.jpg --preview",
        "beit mask-preview --stats 20000 --num-masked 75 -o masks.png",
        "beit mask-preview --animate runs/mine -o learning.gif",
    ),
    run=_run,
)
