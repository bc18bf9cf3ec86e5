"""What options and commands are called elsewhere: in other commands of this program, timm, the release's scripts, git.

A word that is no option is answered with the option of the command that does the same, before the nearest spelling.
"""

from __future__ import annotations

from collections.abc import Iterable

from beitcli.config.fields import suggestion

_OUTPUT = ("--output", "--out")
_LENGTH = ("--epochs", "--steps")
_START = ("--init", "--model", "--teacher")
OPTIONS: dict[str, tuple[str, ...]] = {  # word -> options that may be meant; the first that the command has
    "--out": _OUTPUT,
    "--output": _OUTPUT,
    "-o": _OUTPUT,
    "--output-dir": _OUTPUT,
    "--out-dir": _OUTPUT,
    "--save": _OUTPUT,
    "--format": ("--to", "--encode", *_OUTPUT),
    "--to": ("--encode", *_OUTPUT),
    "--encode": ("--to", *_OUTPUT),
    "--force": ("--overwrite", "--resume"),
    "--overwrite": ("--resume",),
    "--size": ("--image-size", "--short-side", "--grid"),
    "--image-size": ("--size", "--short-side", "--grid"),
    "--img-size": ("--image-size", "--size", "--short-side"),
    "--input-size": ("--image-size", "--size", "--short-side"),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "-b": ("--batch-size",),
    "--learning-rate": ("--lr", "--probe-lr"),
    "--lr": ("--probe-lr",),
    "--lr-decay": ("--layer-decay", "--min-lr"),
    "--layer-decay": ("--min-lr",),
    "--lr-schedule": ("--min-lr",),
    "--warmup": ("--warmup-epochs",),
    "--wd": ("--weight-decay",),
    "--clip-grad": ("--clip",),
    "--epochs": ("--probe-epochs",),
    "--iterations": _LENGTH[::-1],
    "--max-steps": _LENGTH[::-1],
    "--update-freq": ("--micro-batch",),
    "--accumulate": ("--micro-batch",),
    "--save-freq": ("--save-every",),
    "--mask-ratio": ("--ratio",),
    "--num-mask-patches": ("--num-masked",),
    "--checkpoint": _START,
    "--ckpt": _START,
    "--weights": _START,
    "--pretrained": _START,
    "--init": ("--model", "--teacher"),
    "--model": ("--init", "--teacher"),
    "--val-data": ("--val",),
    "--validation": ("--val",),
    "--val": ("--holdout", "--split"),
    "--holdout": ("--val", "--split"),
    "--train-data": ("--train",),
    "--label-smoothing": ("--smoothing",),
    "--reprob": ("--erasing",),
    "--num-images": ("--limit",),
    "--max-images": ("--limit",),
    "--codebook-size": ("--vocab-size",),
    "--codes": ("--vocab-size",),
    "--nb-knn": ("--k",),
    "--num-workers": ("--workers",),
    "--jobs": ("--workers",),
    "-j": ("--workers",),
    "--devices": ("--gpus",),
    "--cuda": ("--device",),
    "--amp": ("--precision",),
    "--fp16": ("--precision",),
    "--bf16": ("--precision",),
    "--verbose": ("--debug",),
    "--silent": ("--quiet",),
}
COMMANDS: dict[str, str] = {  # word -> the command line that does it
    "completion": "beit --install-completion",
    "completions": "beit --install-completion",
    "version": "beit --version",
    "train": "beit pretrain",
    "fine-tune": "beit finetune",
    "test": "beit eval",
    "evaluate": "beit eval",
    "infer": "beit predict",
    "features": "beit embed",
    "mask": "beit mask-preview",
    "attention": "beit attn-map",
    "convert": "beit export",
    "info": "beit inspect",
    "check": "beit doctor",
}


def suggested_option(word: str, flags: Iterable[str]) -> str:
    """Returns `Did you mean '--to'?`: what a command calls it, else its nearest spelling; empty if there is none.

    Args:
        flags: The options of the command.
    """
    there = list(flags)
    meant = next((each for each in OPTIONS.get(word, ()) if each in there), None)
    return f"Did you mean '{meant}'?" if meant is not None else suggestion(word, there)


def suggested_setting(name: str, names: Iterable[str]) -> str:
    """Returns as `suggested_option` the name of a setting, as files and keywords spell it: `learning_rate`."""
    there = {f"--{each.replace('_', '-')}": each for each in names}
    meant = next((there[each] for each in OPTIONS.get(f"--{name.replace('_', '-')}", ()) if each in there), None)
    return f"Did you mean '{meant}'?" if meant is not None else suggestion(name, there.values())
