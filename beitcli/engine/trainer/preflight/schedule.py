"""Findings about the numbers of a training: batch, steps, classes, images to measure on, blocks of a mask."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.trainer.preflight.amount import FEW_TO_TOKENIZE, few_findings
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.runtime.metric_text import counted

FEW_TO_MEASURE = 50
MOST_EPOCHS = 1000  # the longest recipe has 800
_PASSES = 300  # that are proposed in place of more
_TOKENIZER_EPOCHS, _TOKENIZER_PASSES = 200, 100  # a tokenizer is only the way to a BEiT
_FEW_TOKENIZER_STEPS = 300  # too few to learn codes in
_SMALL_BATCH = 16  # below which gradients are noise at a recipe's learning rate
_MORE_STEPS = "Give --steps, or more images."
_MORE_HELD_OUT = f"A twentieth of DATA is held out: {FEW_TO_MEASURE} need {20 * FEW_TO_MEASURE:,} images in DATA."
_FEW_STEPS = 100
_FEW_OF_A_CLASS = 5
_DOMINANT = 0.9
_MOST_LABELS = 200_000  # looked at


def schedule_findings(command: str, images: int, batch: int, steps: int, *, steps_given: bool) -> Iterator[Finding]:
    """Yields what is wrong with the length of a training.

    Args:
        images: Training images.
        batch: Images of one optimizer step.
        steps: Optimizer steps.
        steps_given: Whether the number of steps was set rather than computed from epochs.
    """
    yield from few_findings(command, images)
    if steps * batch / images >= MOST_EPOCHS:
        passes, way_out = _passes(images, batch, steps, "--steps")
        yield Finding("many-epochs", "warning", f"{passes}: most of them teach nothing new.", way_out)
    if batch > images:
        fitting = max(1, 1 << (images.bit_length() - 1))
        few = "" if steps_given or steps >= _FEW_STEPS else f", and the whole run is {counted(steps, 'step')}"
        yield Finding(
            "batch-over-images",
            "warning",
            f"A batch of {batch:,} holds each of {counted(images, 'image')} {batch / images:.3g} times{few}.",
            f"--batch-size {fitting} fits; scale --lr with it.",
        )
    elif not steps_given and steps < _FEW_STEPS and command != "finetune":
        smaller = max(_SMALL_BATCH, batch * steps // 1000)
        more = f"A smaller --batch-size makes more of them, such as {smaller}; scale --lr with it."
        yield Finding(
            "few-steps",
            "warning",
            f"The whole run is {counted(steps, 'step')} of {batch:,} images: too few for weights that start at random.",
            more if smaller < batch else _MORE_STEPS,
        )


def own_tokenizer_findings(images: int, batch: int, steps: int) -> Iterator[Finding]:
    """Yields what is wrong with the training of the tokenizer that a pretraining trains for itself before.

    Args:
        images: Training images.
        batch: Images of one optimizer step of the tokenizer.
        steps: Its optimizer steps.
    """
    if images < FEW_TO_TOKENIZE:
        yield Finding(
            "tokenizer-few-images",
            "warning",
            f"The tokenizer, which trains first, has {counted(images, 'image')} too: its codes will fit these alone.",
            "Give some hundreds, or one that is trained: --tokenizer RUN, or --tokenizer dall-e.",
        )
    if steps * batch / images >= _TOKENIZER_EPOCHS:
        passes, way_out = _passes(images, batch, steps, "--tokenizer-steps", _TOKENIZER_PASSES)
        if _TOKENIZER_PASSES * images < _FEW_TOKENIZER_STEPS * batch:
            way_out = "Give more images, or one that is trained: --tokenizer RUN."
        yield Finding("tokenizer-many-epochs", "warning", f"The tokenizer trains first, and its {passes}.", way_out)


def _passes(images: int, batch: int, steps: int, flag: str, proposed: int = _PASSES) -> tuple[str, str]:
    """Returns how often a training sees its images, and the number of steps that sees them `proposed` times."""
    passes = steps * batch / images
    enough = max(1, round(proposed * images / batch))
    return (
        f"{steps:,} steps of {batch:,} images are {passes:,.0f} passes over {counted(images, 'image')}",
        f"{flag} {enough} makes {max(1, round(enough * batch / images)):,} passes.",
    )


def measuring_findings(command: str, measured: int, is_apart: bool, val: str | None = None) -> Iterator[Finding]:
    """Yields what is wrong with the images to measure on.

    Args:
        is_apart: Whether they are none of the training images.
        val: `--val`, if that is where they are from.
    """
    more = "--val DATA names others." if command == "finetune" else "From 20 images on, a twentieth is held out."
    if not is_apart:
        yield Finding(
            "measured-on-training",
            "note",
            "There are too few images to keep any for measuring: metrics will be those of training images.",
            more,
        )
    elif measured < FEW_TO_MEASURE:
        step = f": a share moves in steps of {1 / measured:.0%}" if command == "finetune" and measured else ""
        more = "--val DATA names others." if command == "finetune" else _MORE_HELD_OUT
        more = "Give more images there." if val is not None else more
        where = f" in --val {val}" if val is not None else ""
        few = f"{counted(measured, 'image')} to measure on{where} {'is' if measured == 1 else 'are'} few{step}."
        yield Finding("few-to-measure", "note", few, more)


def class_findings(training: Source) -> Iterator[Finding]:
    """Yields what is wrong with the labels of a classification data set."""
    classes = training.classes
    if classes is None or not len(training):
        yield from _label_findings(training)
        return
    looked_at = np.linspace(0, len(training) - 1, min(len(training), _MOST_LABELS)).astype(np.int64)
    labels = np.array([training.label(index) for index in looked_at.tolist()], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(classes))
    empty = np.flatnonzero(counts == 0)
    if len(empty) and len(looked_at) == len(training):
        yield Finding(
            "empty-classes",
            "warning",
            f"{len(empty)} of {len(classes)} classes have no image to learn from, the first: '{classes[empty[0]]}'.",
            "Give images of them, or leave --limit out.",
        )
    largest = int(counts.argmax())
    share = counts[largest] / counts.sum()
    if share > _DOMINANT:
        yield Finding(
            "one-class-dominates",
            "warning",
            f"{share:.0%} of the images are '{classes[largest]}': always saying so is as accurate.",
            "Compare top1 with that share, or even the classes out.",
        )
    few = np.flatnonzero((counts > 0) & (counts < _FEW_OF_A_CLASS))
    if len(few) and len(looked_at) == len(training):
        first = classes[few[np.argmin(counts[few])]]
        yield Finding(
            "few-of-a-class",
            "note",
            f"{len(few)} of {len(classes)} classes have fewer than {_FEW_OF_A_CLASS} images, "
            f"the least '{first}' with {counts[few].min()}.",
        )


def _label_findings(training: Source) -> Iterator[Finding]:
    """Yields labels of a multi-label data set that all images have, or none."""
    if not training.label_names or not len(training):
        return
    some = np.linspace(0, len(training) - 1, min(len(training), _MOST_LABELS)).astype(np.int64)
    vectors = [vector for index in some.tolist() if (vector := training.label_vector(index)) is not None]
    shares = np.mean(vectors, axis=0) if vectors else np.full(1, 0.5)
    for value, words in ((0.0, "no image has"), (1.0, "every image has")):
        constant = np.flatnonzero(shares == value)
        if len(constant) and len(some) == len(training):
            yield Finding(
                "constant-labels",
                "warning",
                f"{counted(len(constant), 'label')} {words}, the first: '{training.label_names[constant[0]]}'.",
                "Nothing can be learned of them: leave them out, or give images that differ.",
            )


def mask_findings(grid: tuple[int, int], num_masked: int, min_block: int) -> Iterator[Finding]:
    """Yields whether blockwise masks cannot hold a block of the least size.

    Args:
        grid: (h, w) patches.
        num_masked: Hidden patches of an image.
        min_block: `--min-block`.
    """
    largest = min(num_masked, max(1, grid[0] - 1) * max(1, grid[1] - 1))
    if min_block > largest:
        yield Finding(
            "small-grid",
            "note",
            f"No block of --min-block {min_block} patches fits where {num_masked} of {grid[0]} x {grid[1]} are hidden: "
            "blocks will be smaller, and single patches.",
            f"--min-block {max(1, largest // 2)} fits.",
        )
