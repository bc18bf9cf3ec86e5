"""`beit train-tokenizer`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.train_tokenizer import TrainTokenizerConfig


def _run(config: TrainTokenizerConfig, console: CommandConsole) -> None:
    from beitcli.engine.train_tokenizer import train_tokenizer

    console.print_run(train_tokenizer(config, console.on_event), config.whole_epochs)


DECLARATION = Declaration(
    config=TrainTokenizerConfig,
    examples=(
        "beit train-tokenizer photos/ --recipe small",
        "beit train-tokenizer 'shards/train-*.tar' --recipe small --vocab-size 512 --out runs/tokenizer",
        "beit train-tokenizer photos/ --kind vqkd --teacher runs/classifier",
    ),
    run=_run,
    pipes_json=False,
)
