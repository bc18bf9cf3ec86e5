"""`beit report`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.report import ReportConfig


def _run(config: ReportConfig, console: CommandConsole) -> None:
    from beitcli.engine.events import Note
    from beitcli.engine.io.output_paths import is_stdout
    from beitcli.engine.report_runs import report

    made = report(config)
    for run in made.document["runs"]:
        console.on_event(Note(f"{run['name']}: {run['verdict']['text']}"))
    if is_stdout(config.output):  # that stream is the page's alone
        return
    if console.as_json:
        console.print_whole_result({"page": str(made.path)} | made.document)
    else:
        console.print_line(str(made.path))


DECLARATION = Declaration(
    config=ReportConfig,
    examples=(
        "beit report runs/mine",
        "beit report runs/a runs/b -o compare.html",
    ),
    run=_run,
    about="Every training command writes the page of its run, RUN/report.html, at its end.",
    pipes_json=False,
)
