"""The `sample` dataset: shapes drawn by this program, without files or network.

Ten classes of shapes with textures, clutter and occlusion, so that masked image modeling has something to learn and a
linear model on pixels is not enough. Image i of a split is the same on every machine.
"""

from __future__ import annotations

import hashlib
import mmap
import zlib
from dataclasses import replace
from functools import cached_property
from io import BytesIO

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Format, Request
from beitcli.data.sources.formats._sample_shapes import SHAPES, draw_shape
from beitcli.data.sources.splits import canonical, choose_split
from beitcli.errors import UsageError
from beitcli.runtime.compute.keyed_rng import keyed_generator

VERSION = "sample-1"  # part of the fingerprint; change it with any change of an image or a label
LENGTHS = {"train": 10_000, "val": 1_000}
MEMO_BYTES = 256 << 20

_KEY = 2106_08254  # fixed seed: the paper's number on arXiv


class SampleSource(Source):
    """Drawn shapes, with balanced classes.

    Args:
        split: "train" or "val".
        size: Side in pixels; the content is the same at every size.
        length: Number of images, by default 10,000 (train) or 1,000 (val). A longer source starts with the same images.

    Raises:
        UsageError: There is no such split, or size or length are too small.
    """

    def __init__(self, split: str = "train", size: int = 64, length: int | None = None) -> None:
        if split not in LENGTHS:
            raise UsageError(f"The sample data set has no split '{split}'.", f"Splits are {' and '.join(LENGTHS)}.")
        if size < 16:
            raise UsageError(f"Sample pictures of {size} pixels a side are too small.", "Give a size of 16 or more.")
        if length is not None and length < 1:
            raise UsageError(f"A sample data set of length {length} has no pictures.", "Give a length of 1 or more.")
        self.name = f"sample/{split}"
        self.classes = tuple(SHAPES)
        self.splits = frozenset(map(canonical, LENGTHS))
        self.split = split
        self.size = size
        self._length = LENGTHS[split] if length is None else length
        self._memo = _Memo(self._length, size)

    def __len__(self) -> int:
        return self._length

    def path(self, index: int) -> str:
        return f"{self.name}/{index:05d}-{tuple(SHAPES)[self.label(index)]}"

    def read(self, index: int) -> bytes:
        """Returns the image as PNG."""
        file = BytesIO()
        self.image(index).save(file, "PNG")
        return file.getvalue()

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self._drawn(index)[..., :3].copy())

    def label(self, index: int) -> int:
        return int(self._labels[self._checked(index)])

    def segmentation(self, index: int) -> np.ndarray:
        """Returns the mask (H, W) uint8: 0 for background, class + 1 where the shape is visible."""
        return self._drawn(index)[..., 3].copy()

    def fingerprint(self) -> str:
        return hashlib.sha256(f"{VERSION}\0{self.split}\0{self.size}\0{self._length}".encode()).hexdigest()

    def _checked(self, index: int) -> int:
        if not 0 <= index < self._length:
            raise IndexError(f"{self.name} has pictures 0 to {self._length - 1}, not {index}")
        return index

    @cached_property
    def _labels(self) -> np.ndarray:
        """Labels (length,) int64: every ten images contain each class once, in random order."""
        classes = len(SHAPES)
        runs = [
            keyed_generator(_KEY, f"sample-label-{self.split}", index=run).random(classes).argsort(kind="stable")
            for run in range(-(-self._length // classes))
        ]
        return np.concatenate(runs)[: self._length]

    def _drawn(self, index: int) -> np.ndarray:
        """Returns (H, W, 4) uint8: red, green, blue, and the mask; cached."""
        kept = self._memo.get(self._checked(index))
        if kept is not None:
            return kept
        label = self.label(index)
        draws = keyed_generator(_KEY, f"sample-image-{self.split}", index=index)
        pixels, seen = draw_shape(draws, tuple(SHAPES)[label], self.size)
        drawn = np.dstack([pixels, seen.astype(np.uint8) * np.uint8(label + 1)])
        self._memo.put(index, drawn)
        return drawn


class _Memo:
    """Cache of drawn images in memory shared by forked loader workers and their parent.

    It needs no lock: equal indices give equal images, and an image that another process is just writing fails its
    checksum and is drawn again. Pages are allocated only when they are written. After unpickling it is empty.
    """

    def __init__(self, length: int, size: int) -> None:
        self._shape = (min(length, MEMO_BYTES // (size * size * 4)), size, size, 4)
        self._open()

    def _open(self) -> None:
        count, size = self._shape[:2]
        self._pixels = np.frombuffer(mmap.mmap(-1, max(1, count * size * size * 4)), np.uint8)
        self._pixels = self._pixels[: count * size * size * 4].reshape(self._shape)
        self._checksums = np.frombuffer(mmap.mmap(-1, 4 * max(1, count)), np.uint32)

    def __getstate__(self) -> tuple[int, ...]:
        return self._shape

    def __setstate__(self, shape: tuple[int, int, int, int]) -> None:
        self._shape = shape
        self._open()

    def get(self, index: int) -> np.ndarray | None:
        if index >= self._shape[0] or not self._checksums[index]:
            return None
        drawn = self._pixels[index].copy()
        return drawn if zlib.crc32(drawn.data) == self._checksums[index] else None

    def put(self, index: int, drawn: np.ndarray) -> None:
        if index < self._shape[0]:
            self._pixels[index] = drawn
            self._checksums[index] = zlib.crc32(drawn.data)


def open_sample(request: Request) -> SampleSource:
    """Opens the requested split. Raises DataError if there is none of that name."""
    silent = replace(request, on_progress=None)  # no remark about the unused split
    return SampleSource(split=choose_split("sample", LENGTHS, silent)[0], size=request.sample_size)


FORMAT = Format(
    looks="`sample` (drawn here, needs no files)",
    words=("sample",),
    open=lambda paths, request: [open_sample(request) for _ in paths],
    rank=100,
    finds_splits=True,
)
