"""`beit export`."""

from __future__ import annotations

from beitcli.cli.console import Shell
from beitcli.cli.options import Command
from beitcli.config.inspect_export import ExportConfig


def _run(config: ExportConfig, shell: Shell) -> None:
    from beitcli.engine.export import export

    report = export(config, shell.on_event)
    if shell.as_json:
        shell.document(report)
    else:
        shell.line(report.output)
        difference = f"largest difference {report.max_difference:.2g} of the {report.compared}"
        left_out = ", ".join(report.dropped) or None
        shell.table({"verified": f"{report.verified_with}: {difference}", "left out": left_out})


COMMAND = Command(
    config=ExportConfig,
    summary="Write a model for timm, transformers or the release's code, and verify it.",
    examples=(
        "beit export runs/mine --to hf -o mine-hf",
        "beit export runs/classifier --to timm -o classifier-timm",
        "beit export hf://microsoft/beit-base-patch16-224 --to official -o base-pth",
    ),
    face=_run,
    about="The result is opened again and its outputs compared with the original's; too large a difference is refused.",
    panel="Weights",
)
