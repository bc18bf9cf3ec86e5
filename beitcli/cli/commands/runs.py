"""`beit runs`."""

from __future__ import annotations

import os
from dataclasses import asdict

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.about import KEY_FIGURES, RunsConfig
from beitcli.runtime.metric_text import figure_text, key_figures, metric_title
from beitcli.runtime.storage.safe_json import dump_rows


def _run(config: RunsConfig, console: CommandConsole) -> None:
    from beitcli.engine.runs import Run, age, list_runs

    def figure(run: Run) -> str:
        if run.tokenizer_step is not None:
            return f"tokenizer at step {run.tokenizer_step:,}"
        against_guessing = key_figures(run.figures)
        if against_guessing and config.sort not in run.figures:
            return against_guessing[0]
        name = next((name for name in (config.sort, *KEY_FIGURES) if name in run.figures), "")
        return f"{metric_title(name)} {figure_text(name, run.figures[name])}" if name else ""

    runs = list_runs(config)
    if console.wants_json:
        console.print_line(dump_rows(asdict(run) for run in runs))
        return
    rows = []
    for run in runs:
        made_by = f"{run.command} {run.recipe or ''}".strip()
        facts = {"made by": made_by, "state": run.state, "step": run.step, "ago": age(run.when)}
        rows.append({"run": os.path.relpath(run.run, config.folder), **facts, "figure": figure(run)})
    console.print_rows(rows, whole="run", room="figure")


DECLARATION = Declaration(
    config=RunsConfig,
    examples=(
        "beit runs /scratch/experiments --sort top1",
        "beit runs --json | jq -r '.[] | select(.state == \"stopped\") | .run'",
    ),
    run=_run,
)
