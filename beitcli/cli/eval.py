"""`beit eval`."""

from __future__ import annotations

from beitcli.cli.command import Command
from beitcli.cli.output import Shell
from beitcli.config.use import EvalConfig


def _run(config: EvalConfig, shell: Shell) -> None:
    from beitcli.engine.evaluate import evaluate

    shell.figures(evaluate(config, shell.on_event))


COMMAND = Command(
    config=EvalConfig,
    summary="Measure a finetuned model on labelled images.",
    examples=("beit eval runs/classifier labelled/", "beit eval runs/classifier sample --json"),
    face=_run,
    panel="Use",
)
