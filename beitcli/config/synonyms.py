"""What options and commands are called elsewhere: in other commands of this program, timm, the release's scripts, git.

A word that is no command is answered with the command line that does the same, and one that is no option with the
option. One that means what the command does not have is answered with nothing: the nearest spelling would be of
something else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from beitcli.config.nearest import suggestion

_OUTPUT = ("--output", "--out")
_LENGTH = ("--epochs", "--steps")
_START = ("--init", "--model")
OPTIONS: dict[str, tuple[str, ...]] = {  # word -> options that may be meant; the first that the command has, or none
    "--out": _OUTPUT,
    "--output": _OUTPUT,
    "-o": _OUTPUT,
    "--output-dir": _OUTPUT,
    "--out-dir": _OUTPUT,
    "--save": _OUTPUT,
    "--html": _OUTPUT,
    "--report": _OUTPUT,
    "--run": ("--model", "--init", "--out"),
    "--format": ("--to", "--encode", *_OUTPUT),
    "--to": ("--encode", *_OUTPUT),
    "--encode": ("--to", *_OUTPUT),
    "--force": ("--overwrite",),
    "--overwrite": (),
    "--size": ("--image-size", "--short-side"),
    "--image-size": ("--size", "--short-side"),
    "--img-size": ("--image-size", "--size", "--short-side"),
    "--input-size": ("--image-size", "--size", "--short-side"),
    "--batch": ("--batch-size",),
    "--bs": ("--batch-size",),
    "-b": ("--batch-size",),
    "--learning-rate": ("--lr", "--probe-lr"),
    "--lr": ("--probe-lr",),
    "--lr-decay": ("--layer-decay", "--min-lr"),
    "--layer-decay": (),
    "--lr-schedule": (),
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
    "--init": ("--model",),
    "--model": (),
    "--val-data": ("--val",),
    "--validation": ("--val",),
    "--val": (),
    "--holdout": ("--val",),
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
_NEAREST = "beit embed --query"
COMMANDS: dict[str, str] = {  # word -> the command line that does it
    "completion": "beit --install-completion",
    "completions": "beit --install-completion",
    "version": "beit --version",
    "train": "beit pretrain",
    "fine-tune": "beit finetune",
    "test": "beit eval",
    "evaluate": "beit eval",
    "infer": "beit predict",
    "validate": "beit eval",
    "probe": "beit eval",
    "knn": "beit eval",
    "classify": "beit predict",
    "segment": "beit predict",
    "detect": "beit predict",
    "features": "beit embed",
    "extract": "beit embed",
    "nearest": _NEAREST,
    "neighbours": _NEAREST,
    "neighbors": _NEAREST,
    "search": _NEAREST,
    "similar": _NEAREST,
    "query": _NEAREST,
    "retrieve": _NEAREST,
    "encode": "beit tokenize",
    "decode": "beit tokenize --decode",
    "mask": "beit mask-preview",
    "masks": "beit mask-preview",
    "reconstruct": "beit mask-preview",
    "attention": "beit attn-map",
    "attention-map": "beit attn-map",
    "attn": "beit attn-map",
    "visualize": "beit attn-map",
    "visualise": "beit attn-map",
    "convert": "beit export",
    "info": "beit inspect",
    "check": "beit doctor",
    "duplicates": "beit doctor",
    "list": "beit runs",
    "status": "beit runs",
}


def suggested_option(word: str, flags: Iterable[str]) -> str:
    """Returns `Did you mean '--to'?`: what a command calls it; of an unknown word the nearest spelling; else nothing.

    Args:
        flags: The options of the command.
    """
    return _suggested(word, {flag: flag for flag in flags})


def suggested_setting(name: str, names: Iterable[str]) -> str:
    """Returns as `suggested_option` the name of a setting, as files and keywords spell it: `learning_rate`."""
    there = {f"--{each.replace('_', '-')}": each for each in names}
    word = f"--{name.replace('_', '-')}"
    return _suggested(word, there) if word in OPTIONS else suggestion(name, there.values())


def _suggested(word: str, there: Mapping[str, str]) -> str:
    """Returns the question.

    Args:
        there: Options of the command -> what they are called in the answer.
    """
    if word not in OPTIONS:
        return suggestion(word, there.values())
    meant = next((there[each] for each in OPTIONS[word] if each in there), None)
    return f"Did you mean '{meant}'?" if meant is not None else ""
