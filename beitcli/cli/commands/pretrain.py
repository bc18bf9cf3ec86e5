"""`beit pretrain`."""

from __future__ import annotations

from beitcli.cli.console import Shell
from beitcli.cli.options import Command
from beitcli.config.pretrain import PretrainConfig


def _run(config: PretrainConfig, shell: Shell) -> None:
    from beitcli.engine.pretrain import pretrain

    shell.made(pretrain(config, shell.on_event))


COMMAND = Command(
    config=PretrainConfig,
    summary="Pretrain a BEiT by masked image modeling.",
    examples=(
        "beit pretrain sample --recipe tiny",
        "beit pretrain photos/ --recipe small --epochs 20 --out runs/mine",
    ),
    face=_run,
    panel="Train",
)
