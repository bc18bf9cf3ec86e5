"""`beit pretrain`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.pretrain import PretrainConfig


def _run(config: PretrainConfig, console: CommandConsole) -> None:
    from beitcli.engine.pretrain import pretrain

    console.print_run(pretrain(config, console.on_event), config.whole_epochs)


DECLARATION = Declaration(
    config=PretrainConfig,
    examples=(
        "beit pretrain sample --recipe tiny",
        "beit pretrain photos/ --recipe small --epochs 20 --out runs/mine",
    ),
    run=_run,
    pipes_json=False,
)
