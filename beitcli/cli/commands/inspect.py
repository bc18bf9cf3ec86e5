"""`beit inspect`."""

from __future__ import annotations

from typing import Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.architecture import kind_in_words
from beitcli.config.inspect_export import InspectConfig
from beitcli.runtime.metric_text import size_text


def _run(config: InspectConfig, console: CommandConsole) -> None:
    from beitcli.engine.inspect import InspectReport, inspect

    def rows(report: InspectReport) -> dict[str, Any]:
        """Returns the part of the report that fits on a terminal."""
        shape = dict(report.architecture)
        name = shape.pop("name", "")
        facts = {
            "format": f"{report.format}, {report.container}, {size_text(report.bytes)}",
            "kind": _kind(report.kind),
            "architecture": f"{name}: ".lstrip(": ") + ", ".join(f"{key} {value}" for key, value in shape.items()),
            "parameters": report.parameters,
            "image size": " x ".join(map(str, report.image_size)) + " pixels",
            "grid": " x ".join(map(str, report.grid)),
            "vocabulary": report.vocab_size,
            "classes": report.classes,
            "class names": ", ".join(report.class_names[:5]) + (", ..." if len(report.class_names) > 5 else ""),
            "problem": report.problem,
            "target": report.target,
            "preprocessing": ", ".join(f"{key} {value}" for key, value in (report.preprocessing or {}).items()),
            "file": report.file,
            "without a place": ", ".join(report.dropped[:5]) + (", ..." if len(report.dropped) > 5 else ""),
        }
        return {key: value for key, value in facts.items() if value not in (None, "")}

    report = inspect(config, console.on_event)
    console.print_metrics(report if console.wants_json else rows(report))
    if report.tensors and not console.wants_json:
        shapes = {name: " x ".join(map(str, shape)) for name, shape in report.tensors.items()}
        console.print_rows([{"tensor": name, "shape": shape} for name, shape in shapes.items()])


def _kind(kind: str) -> str:
    words = kind_in_words(kind)
    return kind if words.endswith(f" {kind}") else f"{kind}: {words}"


DECLARATION = Declaration(
    config=InspectConfig,
    examples=(
        "beit inspect runs/mine",
        "beit inspect beit_base_patch16_224_pt22k.pth",
        "beit inspect hf://microsoft/beit-base-patch16-224 --json | jq .grid",
    ),
    run=_run,
)
