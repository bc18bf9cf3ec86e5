"""`beit finetune`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.finetune import FinetuneConfig


def _run(config: FinetuneConfig, console: CommandConsole) -> None:
    from beitcli.engine.finetune import finetune

    console.print_run(finetune(config, console.on_event), config.whole_epochs)


DECLARATION = Declaration(
    config=FinetuneConfig,
    examples=(
        "beit finetune labelled/ --init runs/mine --recipe small --val held-out/",
        "beit finetune labelled/ --init random --recipe small     the from-scratch baseline",
        "beit finetune sample --init runs/mine --recipe tiny",
        "beit finetune street/ --init runs/mine --recipe small-segment     street/images and street/masks",
        "beit finetune sample --init random --recipe tiny-detect     boxes; of your own: a folder as COCO's",
    ),
    run=_run,
    pipes_json=False,
)
