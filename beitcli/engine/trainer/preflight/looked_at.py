"""Findings about the images themselves, from some of them: 64 at most, and a second or so."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from beitcli.data.image_facts import ImageFacts, PixelFacts, pixel_facts, read_facts, stored_range
from beitcli.data.sources.base import Source
from beitcli.data.sources.formats.sample import SampleSource
from beitcli.engine.trainer.preflight.findings import Finding
from beitcli.errors import BadImage
from beitcli.runtime.metric_text import counted

MOST_IMAGES = 64
SECONDS = 1.0
_ENOUGH_TO_REFUSE = 16


@dataclass
class Looked:
    """What some images of a source are.

    Attributes:
        images: Number looked at.
        facts: Of those that can be read.
        pixels: Of those with more than 8 bits, by their path.
        ranges: Least and greatest number of the dark ones in gray, by their path.
        bad: (path, reason) of those that cannot be read.
    """

    images: int = 0
    facts: list[ImageFacts] = field(default_factory=list)
    pixels: dict[str, PixelFacts] = field(default_factory=dict)
    ranges: dict[str, tuple[float, float]] = field(default_factory=dict)
    bad: list[tuple[str, str]] = field(default_factory=list)


def some_indices(source: Source, most: int) -> list[int]:
    """Returns indices spread over the source; where images are read by the block, those of its beginning.

    Remote blocks give none: what is downloaded for a look would be wasted.
    """
    blocks = source.blocks()
    if blocks is None:
        return np.unique(np.linspace(0, len(source) - 1, min(most, len(source))).astype(int)).tolist()
    return [] if blocks.are_remote else list(range(min(most, len(source), int(blocks.lengths[0]))))


def is_drawn(source: Source) -> bool:
    """Whether all images are the program's own, of which nothing needs to be said."""
    return all(isinstance(leaf, SampleSource) for leaf in source.leaves())


def look(source: Source, seconds: float = SECONDS) -> Looked:
    """Reads some images; those of more than 8 bits are decoded, of others the header is enough.

    Args:
        seconds: After which no further image is read; the first is in any case.
    """
    looked, deadline = Looked(), time.monotonic() + seconds
    if is_drawn(source):
        return looked
    for index in some_indices(source, MOST_IMAGES):
        path = source.path(index)
        looked.images += 1
        try:
            data = source.read(index)
            facts = read_facts(data)
            if facts.is_deep:
                looked.pixels[path] = pixel_facts(np.asarray(source.image(index)))
                if looked.pixels[path].is_dark and (numbers := stored_range(data)) is not None:
                    looked.ranges[path] = numbers
            looked.facts.append(facts)
        except BadImage as error:
            looked.bad.append((path, error.message))
        if time.monotonic() > deadline:
            break
    return looked


def image_findings(looked: Looked, size: int, *, from_scratch: bool) -> Iterator[Finding]:
    """Yields what is wrong with the images.

    Args:
        size: Shorter side of the images that the model takes, in pixels.
        from_scratch: Whether the model is not pretrained, so that its size is free.
    """
    of = f"of {counted(looked.images, 'image')} looked at"
    if looked.bad:
        path, reason = looked.bad[0]
        yield Finding(
            "unreadable",
            "warning",
            f"{len(looked.bad)} {of} cannot be read, the first: {path}: {reason}.",
            "`beit doctor DATA` lists all.",
        )
    yield from _dark(looked, of)
    stacks = [facts.pages for facts in looked.facts if facts.pages > 1]
    if stacks:
        yield Finding(
            "stacks",
            "warning",
            f"{len(stacks)} {of} are TIFFs of up to {max(stacks):,} pages, of which the first alone is used.",
            "--pages all makes each page an image.",
        )
    sides = [min(facts.size) for facts in looked.facts]
    if from_scratch and sides and statistics.median(sides) < size / 2:
        median = statistics.median_low(sides)
        yield Finding(
            "small-images",
            "warning",
            f"Half {of} have at most {median} pixels on their shorter side, and are enlarged to {size}.",
            "A smaller size costs less and shows as much: `beit recipes` lists those for 64 pixels.",
        )


def _dark(looked: Looked, of: str) -> Iterator[Finding]:
    """Yields whether images of more than 8 bits use so little of their range that they look black."""
    flat = [path for path, facts in looked.pixels.items() if facts.is_flat]
    dark = [path for path, facts in looked.pixels.items() if facts.is_dark]
    if flat and len(flat) == looked.images and (looked.images >= _ENOUGH_TO_REFUSE):
        yield Finding(
            "flat",
            "refusal",
            f"All {looked.images} images looked at become one colour, such as {flat[0]}.",
            _range_to_give(looked),
        )
    elif dark:
        brightest = max(looked.pixels[path].brightest for path in dark)
        yield Finding(
            "dark",
            "warning",
            f"{len(dark)} {of} are nearly black: their numbers of more than 8 bits are small, and become {brightest} "
            f"of 255 at most, such as {dark[0]}.",
            _range_to_give(looked),
        )


def _range_to_give(looked: Looked) -> str:
    """Returns the way out of dark images: the smallest range of whole bits that holds their numbers."""
    least = min((low for low, _ in looked.ranges.values()), default=0.0)
    greatest = max((high for _, high in looked.ranges.values()), default=0.0)
    if least == greatest:
        return "Save them with 8 bits a channel, stretched over their range."
    high = f"{(1 << int(greatest).bit_length()) - 1}" if least >= 0 and greatest >= 1 else f"{greatest:g}"
    low = "0" if least >= 0 else f"{least:g}"
    return (
        f"--intensity-range {low},{high} makes all brighter alike, --intensity-range auto each image by its own range."
    )
