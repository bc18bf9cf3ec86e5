"""What a file of features holds: rows in the order of the images, their paths and labels, and what the features are.

Rows are copied in blocks, so that memory holds one block whatever the number of images.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beitcli.errors import UsageError
from beitcli.runtime.storage.safe_json import dump_json

_BLOCK_BYTES = 1 << 24
Blocks = Iterator[np.ndarray]


@dataclass(frozen=True, kw_only=True)
class FeatureKind:
    """What the features of a file are.

    Attributes:
        model: The reference that was given; not compared.
        weights: SHA-256 of the weights.
        layer: From 1.
        pool: `mean`, `cls`, `cls+mean` or `none`.
        norm: Whether each token was normed before pooling.
        size: (H, W) of the images.
        view: How images are cropped and normalized.
        dtype: float32 or float16.
        shape: Of an image's feature: (D,) or (N, D).
    """

    model: str
    weights: str
    layer: int
    pool: str
    norm: bool
    size: tuple[int, ...]
    view: dict[str, Any]
    dtype: str
    shape: tuple[int, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns it as JSON has it."""
        plain: dict[str, Any] = json.loads(dump_json(asdict(self)))
        return plain

    @property
    def row_bytes(self) -> int:
        return int(np.prod(self.shape)) * np.dtype(self.dtype).itemsize

    def require(self, path: Path, stated: dict[str, Any], beside: tuple[str, ...] = ()) -> None:
        """Raises UsageError if the features in `path` are of another model, layer, pooling, size or view.

        Args:
            stated: `as_dict` of the file's kind.
            beside: Fields that may differ.
        """
        own = self.as_dict()
        for name in own:
            if name not in ("model", *beside) and stated.get(name) != own[name]:
                held, made = (_words(name, each) for each in (stated.get(name), own[name]))
                raise UsageError(
                    f"'{path}' holds features of another kind: {name} {held}, and these settings give {made}.",
                    f"Give what it was made with (model {stated.get('model')}), or another file.",
                )


def _words(name: str, value: Any) -> str:
    return f"{str(value)[:12]}..." if name == "weights" else str(value)


@dataclass(frozen=True)
class StoredFeatures:
    """A file of features, opened to read.

    Attributes:
        kind: As `FeatureKind.as_dict`; None if the file does not say it.
        paths: Of the images, a row each.
        labels: Class names; None without.
        blocks: Opens the rows: arrays (b, *shape) in order.
    """

    kind: dict[str, Any] | None
    paths: list[str]
    labels: list[str | None] | None
    blocks: Callable[[], Blocks]


@dataclass(frozen=True)
class Rows:
    """Rows that are to be written, with their paths and labels."""

    kind: FeatureKind
    paths: list[str]
    labels: list[str | None] | None
    blocks: Callable[[], Blocks]

    def about(self) -> dict[str, Any]:
        labels = {} if self.labels is None else {"labels": self.labels}
        return {"features": self.kind.as_dict(), "paths": self.paths} | labels


def write_blocks(file: BinaryIO, rows: Rows) -> None:
    """Writes the numbers of all rows."""
    for block in rows.blocks():
        file.write(np.ascontiguousarray(block, dtype=rows.kind.dtype).data)


def in_blocks(array: np.ndarray, about: dict[str, Any]) -> StoredFeatures:
    """Returns the features of an array that may be mapped from a file.

    Args:
        about: As of `Rows.about`.
    """
    paths, labels = about["paths"], about.get("labels")
    if len(paths) != len(array) or (labels is not None and len(labels) != len(paths)):
        raise ValueError(f"{len(array)} rows for {len(paths)} paths")
    step = max(1, _BLOCK_BYTES // max(1, array[:1].nbytes))
    return StoredFeatures(
        about["features"],
        paths,
        labels,
        lambda: (np.asarray(array[first : first + step]) for first in range(0, len(array), step)),
    )
