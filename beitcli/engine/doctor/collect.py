"""What a pass over the images collects: arrays with a row an image, some 250 bytes each."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.engine.doctor.copies import Signatures
from beitcli.engine.doctor.examine import DIGEST_BYTES, SMALL, Examined
from beitcli.engine.doctor.marks import NAMES, bits_of

_STEPS = (16, 32, 64, 128, 224, 384, 512, 1024, 2048, 4096)  # pixels


@dataclass
class Collected:
    """What was found of n images.

    Attributes:
        marks: (n,) uint16, a bit for each of `marks.NAMES`.
        sides: (n, 2) int32, width and height; 0 if an image cannot be read.
        stored_bytes: Of all files together.
        formats: Images by format.
        words: More on a mark of an image, by mark and index.
    """

    signatures: Signatures
    marks: np.ndarray
    sides: np.ndarray
    stored_bytes: int = 0
    formats: Counter[str] = field(default_factory=Counter)
    words: dict[tuple[str, int], str] = field(default_factory=dict)

    @classmethod
    def empty(cls, images: int) -> Collected:
        signatures = Signatures.empty(images, DIGEST_BYTES, SMALL * SMALL * 3)
        return cls(signatures, np.zeros(images, np.uint16), np.zeros((images, 2), np.int32))

    def add(self, image: Examined) -> None:
        """Adds what was found of one image."""
        index, kept = image.index, self.signatures
        self.marks[index] = bits_of(image.marks)
        self.stored_bytes += image.stored_bytes
        self.words |= {(mark, index): text for mark, text in image.words.items()}
        if "unreadable" in image.marks:
            return
        self.formats[image.format] += 1
        self.sides[index] = image.size
        kept.readable[index] = True
        kept.files[index] = np.frombuffer(image.file_digest, np.uint8)
        kept.pixels[index] = np.frombuffer(image.pixel_digest, np.uint8)
        kept.rows[index], kept.columns[index] = image.hashes
        kept.small[index] = np.frombuffer(image.small, np.uint8)

    def marked(self, name: str) -> np.ndarray:
        """Returns the indices of the images with a mark."""
        return np.flatnonzero(self.marks & (1 << NAMES.index(name)))


def class_counts(source: Source) -> dict[str, int]:
    """Returns the number of images of each class; empty without classes."""
    if source.classes is None:
        return {}
    labels = np.fromiter((source.label(index) for index in range(len(source))), np.int64, count=len(source))
    return dict(zip(source.classes, np.bincount(labels, minlength=len(source.classes)).tolist(), strict=True))


def size_counts(sides: np.ndarray) -> dict[str, Any]:
    """Returns `median`, `least`, `greatest` and a `histogram` of the shorter sides (n, 2) in pixels; 0 is no size."""
    shorter = sides.min(axis=1)
    shorter = shorter[shorter > 0]
    if not len(shorter):
        return {}
    counts = np.bincount(np.searchsorted(_STEPS, shorter, side="left"), minlength=len(_STEPS) + 1).tolist()
    names = [f"up to {step}" for step in _STEPS] + [f"above {_STEPS[-1]}"]
    return {
        "median": int(np.median(shorter)),
        "least": int(shorter.min()),
        "greatest": int(shorter.max()),
        "histogram": {name: count for name, count in zip(names, counts, strict=True) if count},
    }
