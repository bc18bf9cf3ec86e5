"""`beit eval`."""

from __future__ import annotations

from beitcli.cli.command_table import Declaration
from beitcli.cli.console import CommandConsole
from beitcli.config.evaluate import EvalConfig


def _run(config: EvalConfig, console: CommandConsole) -> None:
    from beitcli.engine.evaluate import compare

    comparison = compare(config, console.on_event)
    console.print_comparison(comparison.reports)
    if comparison.failure is not None:
        raise comparison.failure


DECLARATION = Declaration(
    config=EvalConfig,
    examples=(
        "beit eval runs/classifier labelled/",
        "beit eval runs/classifier sample --json",
        "beit eval runs/segmenter held-out/ --multi-scale --flip",
        "beit eval runs/detector coco/",
        "beit eval runs/mine held-out/ --train labelled/ --protocol knn",
        "beit eval runs/mine held-out/ --train labelled/ --protocol linear --layer sweep",
        "beit eval runs/mine runs/mine@random timm/vit_small_patch16_224.dino sample --protocol knn     one table",
        "beit eval runs/mine held-out/ --train photos/ --protocol elbo --positions all",
    ),
    about="Several MODELs may stand before DATA: arguments between the first and the last are MODELs as long as they "
    "are runs, checkpoints, files or folders of weights, hf://OWNER/NAME, timm/NAME or random; what follows is DATA. "
    "Labels are classes, masks or boxes; `--protocol elbo` needs none: the likelihood bound of a pretrained run.",
    run=_run,
)
