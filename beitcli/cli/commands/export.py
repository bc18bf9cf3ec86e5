"""`beit export`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.fields import settings_of
from beitcli.config.inspect_export import LAYOUTS, ExportConfig


def _run(config: ExportConfig, console: CommandConsole) -> None:
    from beitcli.engine.export import export

    report = export(config, console.on_event)
    if console.as_json:
        console.print_whole_result(report)
    else:
        console.print_line(report.output)
        difference = f"largest difference {report.max_difference:.2g} of the {report.compared}"
        photos = f"pixels within {report.pixel_difference:.2g} of 255, {report.compared} within "
        rows = {
            "format": _format(report.to, is_given=console.origins.get("to") != "default"),
            "verified": f"opened again by {report.verified_with}: {difference}",
            "left out": ", ".join(report.dropped) or None,
            "photos": f"{photos}{report.photo_difference:.2g} by the stated preprocessing",
        }
        console.table(rows)


def _format(to: str, *, is_given: bool) -> str:
    """Returns the format that was written in words, and how the others are had where none was asked for."""
    if is_given:
        return f"{LAYOUTS[to]} (--to {to})"
    others = ", ".join(each for each in settings_of(ExportConfig)["to"].choices if each != to)
    return f"{LAYOUTS[to]} (--to {to}; others: {others})"


DECLARATION = Declaration(
    config=ExportConfig,
    examples=(
        "beit export runs/mine --to hf -o mine-hf",
        "beit export runs/classifier --to timm -o classifier-timm",
        "beit export hf://microsoft/beit-base-patch16-224 --to official -o base-pth",
        "beit export runs/classifier --to onnx -o classifier.onnx",
    ),
    run=_run,
    about="The result is opened again and its outputs compared with the original's; too large a difference is refused.",
    pipes_json=False,
)
