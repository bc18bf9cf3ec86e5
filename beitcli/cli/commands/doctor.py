"""`beit doctor`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.doctor import LISTS, DoctorConfig
from beitcli.errors import DataError
from beitcli.runtime.metric_text import counted, size_text

if TYPE_CHECKING:
    from beitcli.engine.doctor.report import DoctorReport

_SHOWN = 3  # images of a finding


def _run(config: DoctorConfig, console: CommandConsole) -> None:
    from beitcli.engine.doctor.run import doctor

    report = doctor(config, console.on_event, console.stdin)
    if console.wants_json:
        console.print_whole_result(report)
    else:
        console.print_metrics(_facts(report))
        _print_findings(report, console)
    if report.unreadable:
        lists = [output for output in config.output if output.lower().endswith(LISTS)]
        listed = f"'{lists[0]}' lists" if lists else "-o good.tsv lists"
        said = f"{report.unreadable:,} of {counted(report.images, 'image')} cannot be read."
        if not console.wants_json:  # the findings above say it already
            said = f"{counted(report.unreadable, 'unreadable image')}, as above."
        or_list = f", or leave it out: {listed} the others, as DATA for every command" if report.readable else ""
        raise DataError(said, f"Replace what is damaged{or_list}.")


def _facts(report: DoctorReport) -> dict[str, str]:
    sizes, splits = report.sizes, report.splits
    classes = {name: len(counts) for name, counts in report.classes.items()}
    facts = {
        "images": f"{report.images:,}, {size_text(report.bytes)}",
        "splits": ", ".join(f"{name} {number:,}" for name, number in splits.items()) if len(splits) > 1 else "",
        "formats": ", ".join(f"{name} {number:,}" for name, number in report.formats.items()),
        "shorter side": _shorter_side(sizes) if sizes else "",
        "classes": "; ".join(
            f"{_of_split(report, name)}{number} of {_spread(report, name)} images" for name, number in classes.items()
        ),
        "repeated": _repeated(report),
    }
    return {name: text for name, text in facts.items() if text}


def _repeated(report: DoctorReport) -> str:
    """Returns how many images repeat another one, and in what: the sums of the findings."""
    from beitcli.engine.doctor.report import SAME

    copies = {
        kind: sum(each.images for each in report.findings if each.kind in (f"duplicates-{kind}", f"overlap-{kind}"))
        for kind in SAME
    }
    return ", ".join(f"{number:,} {SAME[kind]}" for kind, number in copies.items() if number)


def _shorter_side(sizes: dict[str, Any]) -> str:
    if sizes["least"] == sizes["greatest"]:
        return f"{sizes['least']} pixels"
    return "{least} to {greatest} pixels, median {median}".format(**sizes)


def _of_split(report: DoctorReport, split: str) -> str:
    return f"{split} " if len(report.splits) > 1 else ""


def _spread(report: DoctorReport, split: str) -> str:
    numbers = report.classes[split].values()
    return f"{min(numbers):,}" if min(numbers) == max(numbers) else f"{min(numbers):,} to {max(numbers):,}"


def _print_findings(report: DoctorReport, console: CommandConsole) -> None:
    if not any(each.images or each.severity == "warning" for each in report.findings):
        console.print_line("Nothing is wrong with these images.")
    for each in report.findings:
        way_out = "" if each.kind == "unreadable" else each.way_out  # the error at the end says it
        console.print_sentences(f"{each.severity}: {each.what} {way_out}".rstrip())
        for example in each.examples[:_SHOWN]:
            console.print_line(f"    {example['path']}" + (f": {example['why']}" if example["why"] else ""))
        if each.images > _SHOWN:
            console.print_line(f"    and {each.images - _SHOWN:,} more")


DECLARATION = Declaration(
    config=DoctorConfig,
    examples=(
        "beit doctor photos/",
        "beit doctor train/ --val val/ -o page.html",
        "beit doctor photos/ -o good.tsv",
        "beit doctor photos/ --json | jq '.findings[] | {kind, images}'",
    ),
    run=_run,
    about="Without --split, all splits of DATA are checked and compared. Exits with 3 if images cannot be read.",
)
