"""`beit mask-preview`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.cli.lines_at_end import lines_at_end
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
            _print_statistics(statistics, console)
        return
    _print_previews(config, console, is_picture=is_picture)


def _print_previews(config: MaskPreviewConfig, console: CommandConsole, *, is_picture: bool) -> None:
    """Prints what there is to say of each image, and at the end the sheet that they share."""
    from beitcli.engine.mask_preview import mask_preview

    with lines_at_end(console) as tell_at_end:
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
                if config.output is None:
                    if not console.has_drawn:
                        console.print_text(_in_blocks(document["mask"]))
                elif Path(document["output"]) == Path(config.output):
                    tell_at_end(document["output"])
                else:
                    console.print_line(document["output"])


def _in_blocks(mask: list[list[bool]]) -> str:
    return "\n".join("".join("██" if hidden else "··" for hidden in row) for row in mask)


def _print_statistics(statistics: dict[str, Any], console: CommandConsole) -> None:
    if console.wants_json:
        console.print_whole_result(statistics)
        return
    console.print_metrics(_facts(statistics))
    console.print_line(statistics.get("output") or "-o PICTURE draws them, --json prints every number")


def _facts(statistics: dict[str, Any]) -> dict[str, str]:
    """Returns the statistics without what only a picture shows: each patch, each size of a block."""
    rows, columns = statistics["grid"]
    hidden, blocks = statistics["num_masked"], statistics["blocks"]
    a_patch = [share for row in statistics["position_probability"] for share in row]
    least, most, mean = min(a_patch), max(a_patch), hidden["mean"] / len(a_patch)
    facts = {
        "masks": f"{statistics['masks']:,}",
        "grid": f"{rows} x {columns} patches",
        "hidden patches": f"{hidden['min']:,} in each mask",
        "a patch is hidden in": f"{least:.0%} to {most:.0%} of the masks, {mean:.0%} on average",
    }
    if hidden["min"] != hidden["max"]:
        facts["hidden patches"] = f"{hidden['min']:,} to {hidden['max']:,}, {hidden['mean']:.4g} on average"
    areas = statistics["histograms"]["block_area"]
    if number := sum(areas):  # of a generator that places blocks
        size = sum(area * count for area, count in enumerate(areas)) / number
        facts["blocks of a mask"] = f"{blocks['mean']:.3g} on average, standard deviation {blocks['sd']:.2g}"
        facts["patches of a block"] = f"{size:.3g} on average"
    facts["connected parts"] = f"{blocks['components']:.3g} on average"
    if blocks["right_neighbour_masked"] is not None:
        facts["right of a hidden patch"] = f"hidden too in {blocks['right_neighbour_masked']:.0%} of the cases"
    return facts


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
