"""Findings about how many images there are to train on, of a training command and of `beit doctor`. No torch."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.runtime.metric_text import counted

FEW_TO_PRETRAIN, FEW_TO_TOKENIZE = 1000, 100
# Every crop of one image shows the same thing: whatever is right about it may be known by heart, and there is no second
# image to tell. From two on this is a matter of degree, and is warned of: a trial of the machinery takes a handful.
LEAST_IMAGES = 2
_FEW = {"pretrain": FEW_TO_PRETRAIN, "train-tokenizer": FEW_TO_TOKENIZE}
_PRETRAINED = "hf://microsoft/beit-base-patch16-224-pt22k"
_FINETUNE_IT = f"`beit finetune LABELLED --init {_PRETRAINED} --recipe base-22k --batch-size 32 --lr 1.25e-4`"


def held_out_images(images: int, most: int) -> int:
    """Returns how many images a training without labels measures on instead of learning from them: a twentieth."""
    return min(most, images // 20)


def few_findings(command: str, images: int, held_out: int = 0) -> Iterator[Finding]:
    """Yields whether the images to train on are fewer than the recipes of a command need.

    Args:
        images: Training images, without those that are held out.
        held_out: Number of those, where the message is to tell them.
    """
    if images < _FEW.get(command, LEAST_IMAGES):
        way_out = {
            "pretrain": f"Give a thousand or more, or skip pretraining, if some have labels: {_FINETUNE_IT} (a GPU).",
            "train-tokenizer": "Give a hundred or more.",
        }.get(command, "Give some tens of each class.")
        without = " without labels" if command in _FEW else ""
        which = counted(images, "training image")
        if held_out:
            which = f"{counted(images, 'image')} to train on ({held_out:,} of {images + held_out:,} held out)"
        yield Finding(
            "few-images",
            "warning",
            f"{which} {'is' if images == 1 else 'are'} few to learn from{without}.",
            way_out,
        )


def one_image_findings(command: str, images: int) -> Iterator[Finding]:
    """Yields a refusal if a training without labels has so few images that nothing can come of it."""
    few = _FEW.get(command)
    if few is not None and 0 < images < LEAST_IMAGES:
        yield Finding(
            "one-image",
            "refusal",
            "Nothing can be learned from 1 image: the model would memorise it, and no other image would show that.",
            f"Give {few:,} or more, {LEAST_IMAGES} at least (tiles of a large image will do), or take what is trained: "
            f"{_FINETUNE_IT} (a GPU). "
            f"A trial without data: `beit {command} sample --recipe tiny`.",
        )


def refusals(command: str, training: Source, *, labelled: bool) -> Iterator[Finding]:
    """Yields why nothing can come of a training, whatever its settings; mostly nothing.

    Args:
        labelled: Whether the images' classes are learned.
    """
    images = len(training)
    yield from one_image_findings(command, images)
    if labelled and images and (same := _all_alike(training)):
        what = f"All {images:,} images" if images > 1 else "The only image"
        yield Finding(
            "all-alike",
            "refusal",
            f"{what} to learn from {'have' if images > 1 else 'has'} {same}: there is nothing to tell apart.",
            "Give images of two classes at least, some tens of each.",
        )


def _all_alike(training: Source) -> str:
    """Returns the class or the labels that all images have; empty if they differ, or nothing is known."""
    if training.classes is not None:
        first = training.label(0)
        if first is not None and all(training.label(index) == first for index in range(1, len(training))):
            return f"the class '{training.classes[first]}'"
    elif training.label_names:
        labels = training.label_vector(0)
        others = map(training.label_vector, range(1, len(training)))
        if labels is not None and all(each is not None and np.array_equal(each, labels) for each in others):
            return "the same labels"
    return ""
