"""`beit pack`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.pack import PackConfig
from beitcli.runtime.metric_text import size_text

if TYPE_CHECKING:
    from beitcli.engine.pack.run import PackReport


def _run(config: PackConfig, console: CommandConsole) -> None:
    from beitcli.engine.pack.run import pack

    report = pack(config, console.on_event, console.stdin)
    console.print_metrics(report if console.wants_json else _facts(report))


def _facts(report: PackReport) -> dict[str, str]:
    encoded = report.images - report.copied
    facts = {
        "pack": report.output,
        "images": f"{report.images:,}" + (f", {report.bad:,} left out that cannot be read" if report.bad else ""),
        "splits": ", ".join(f"{name} {number:,}" for name, number in report.splits.items())
        if len(report.splits) > 1
        else "",
        "classes": "" if report.classes is None else f"{report.classes:,}",
        "shards": f"{report.shards:,}, {size_text(report.bytes)}",
        "size": f"{report.ratio:.2f} times the files' {size_text(report.source_bytes)}",
        "copied": f"{report.copied:,} files, byte for byte" if report.copied else "",
        "encoded": f"{encoded:,} images as JPEG, {report.level_error:.2f} levels of 255 off in the mean"
        if report.level_error is not None
        else "",
        "seconds": f"{report.seconds:.1f}",
    }
    return {name: text for name, text in facts.items() if text}


DECLARATION = Declaration(
    config=PackConfig,
    examples=(
        "beit pack photos/ -o packed/                       the files as they are, in few large ones",
        "beit pack photos/ --encode raw -o packed/          their pixels: the same run without decoding",
        "beit pack imagenet/ --encode raw --short-side 256 -o packed/",
        "beit pretrain packed/",
    ),
    run=_run,
    about="Shards are tar files in WebDataset's layout, and DATA of every command: splits, classes and order are "
    "those of DATA. A pack that was stopped goes on when its command is given again. --short-side, and JPEG of "
    "other formats, change the pixels: docs/performance.md says how much.",
)
