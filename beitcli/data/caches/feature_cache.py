"""On-disk cache of image features, keyed by weights, data, transform and precision; one array per layer.

    FOLDER/KEY/layer-07.npy   (images, D) float32, memory-mapped
               labels.npy     (images,) int64
               rows.npy       indices of the readable images
               about.json     what KEY is the hash of, the unreadable images, CRC-32 of each file, a note for people

float32, because a cosine of float16 vectors is off by 1e-4 and would change some neighbours.
4 D bytes per image and layer: 3 kB for a width of 768. Written in order to a temporary folder, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np

from beitcli.data.caches.feature_note import ABOUT, OF
from beitcli.errors import StorageError
from beitcli.runtime.metric_text import size_text
from beitcli.runtime.storage.regular_files import open_regular, read_regular
from beitcli.runtime.storage.safe_json import parse_json

Bad = tuple[int, str, str]
_CHUNK = 1 << 22
_ROWS = 1 << 14


@dataclass(frozen=True)
class Features:
    """Pooled features of the readable images of a source.

    Attributes:
        layers: Layer, from 1, -> (images, D) float32 array on disk; rows of unreadable images are zero.
        labels: (images,) int64.
        rows: (n,) int64, ascending: the readable images.
        bad: (index, path, reason) of the other images.
        standard: Layer -> mean and standard deviation, (D,) float32 each, that `take` standardizes with; empty for
            none.
    """

    layers: Mapping[int, np.ndarray]
    labels: np.ndarray
    rows: np.ndarray
    bad: Sequence[Bad]
    standard: Mapping[int, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, layer: int, places: np.ndarray | slice) -> np.ndarray:
        """Reads (m, D) features of some readable images from disk.

        Args:
            places: Indices among the n readable images.
        """
        values = self.layers[layer][self.rows[places]]
        if layer not in self.standard:
            return values
        mean, deviation = self.standard[layer]
        return (values - mean) / deviation

    def moments(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns mean and standard deviation per dimension over the readable images, computed by blocks in float64."""
        total, squares = np.zeros(()), np.zeros(())
        for begin in range(0, len(self), _ROWS):
            values = self.take(layer, slice(begin, begin + _ROWS)).astype(np.float64)
            total, squares = total + values.sum(axis=0), squares + (values**2).sum(axis=0)
        mean = total / len(self)
        deviation = np.sqrt(np.maximum(squares / len(self) - mean**2, 0))
        return mean.astype(np.float32), np.maximum(deviation, 1e-6).astype(np.float32)

    @property
    def readable_labels(self) -> np.ndarray:
        """Labels of the readable images, (n,) int64."""
        return self.labels[self.rows]


def features_folder(parent: Path, about: Mapping[str, Any]) -> Path:
    """Returns the folder of the features that `about` describes."""
    return parent / hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:32]


def layer_file(layer: int) -> str:
    return f"layer-{layer:02d}.npy"


def load_features(parent: Path, about: Mapping[str, Any], layers: Sequence[int]) -> Features | None:
    """Loads cached layers, checking every byte; None if they are missing, damaged or do not match `about`."""
    folder = features_folder(parent, about)
    names = ["labels.npy", "rows.npy", *map(layer_file, layers)]
    try:
        document = parse_json(read_regular(folder / ABOUT))
        if document["about"] != dict(about) or any(document["crc32"][name] != _crc(folder / name) for name in names):
            return None
        arrays = {layer: np.load(folder / layer_file(layer), mmap_mode="r") for layer in layers}
        labels, rows = np.load(folder / "labels.npy"), np.load(folder / "rows.npy")
        bad = [(int(index), str(path), str(reason)) for index, path, reason in document["bad"]]
    except Exception:  # numpy raises nearly any type for a damaged array, from EOFError to zipfile's
        return None
    features = Features(arrays, labels, rows, bad)
    return features if _fit_together(features) else None


def _fit_together(features: Features) -> bool:
    """Whether the arrays are of the same images; a checksum is no proof of who wrote them."""
    labels, rows = features.labels, features.rows
    if not all(isinstance(each, np.ndarray) for each in (labels, rows, *features.layers.values())):
        return False
    if any(each.dtype != np.int64 or each.ndim != 1 for each in (labels, rows)):
        return False
    ascends = bool((np.diff(rows) > 0).all()) and (not len(rows) or (rows[0] >= 0 and rows[-1] < len(labels)))
    return ascends and all(
        each.dtype == np.float32 and each.ndim == 2 and len(each) == len(labels) for each in features.layers.values()
    )


def _crc(path: Path) -> int:
    check = 0
    with open_regular(path) as file:
        while chunk := file.read(_CHUNK):
            check = zlib.crc32(chunk, check)
    return check


class FeatureWriter:
    """Writes features in the order of the images, batch by batch; nothing is kept unless `finish` is called.

    Args:
        parent: The cache.
        about: What the features depend on, as JSON.
        layers: From 1.
        images: Number of images of the source.
        width: D.
        note: What the features are of, for `beit cache list`.

    Raises:
        StorageError: The disk is full or cannot be written.
    """

    def __init__(
        self, parent: Path, about: Mapping[str, Any], layers: Sequence[int], images: int, width: int, note: str = ""
    ) -> None:
        self.note = note
        self.final, self.about, self.layers = features_folder(parent, about), dict(about), tuple(layers)
        self.images, self.width = images, width
        self.partial = self.final.with_name(f"{self.final.name}.partial-{os.getpid()}")
        self.labels = np.zeros(images, dtype=np.int64)
        self.readable = np.zeros(images, dtype=bool)
        self.bad: list[Bad] = []
        self.written = 0
        self.files: dict[int, BinaryIO] = {}

    def __enter__(self) -> FeatureWriter:
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            self.partial.mkdir(parents=True)
            need = len(self.layers) * self.images * self.width * 4
            if shutil.disk_usage(self.partial).free < need:
                raise OSError("not enough space")
            header = {"descr": "<f4", "fortran_order": False, "shape": (self.images, self.width)}
            for layer in self.layers:
                self.files[layer] = (self.partial / layer_file(layer)).open("wb")
                np.lib.format.write_array_header_1_0(self.files[layer], header)
        except OSError as error:
            self._close()
            raise self._failed(error) from None
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for file in self.files.values():
            file.close()
        shutil.rmtree(self.partial, ignore_errors=True)

    def _failed(self, error: OSError) -> StorageError:
        need = len(self.layers) * self.images * self.width * 4
        return StorageError(
            f"Features cannot be kept in '{self.final.parent}' ({size_text(need)} needed): {error.strerror or error}.",
            "Give another folder by --feature-cache, or fewer images by --limit.",
        )

    def add(self, features: np.ndarray, labels: np.ndarray, indices: Sequence[int], bad: Sequence[Bad]) -> None:
        """Writes the next batch.

        Args:
            features: (layers, b, D) float32 of the b readable images.
            labels: (b,) int64.
            indices: Of these images; with those of `bad` they continue the previous batch without a gap.
        """
        count = len(indices) + len(bad)
        rows = np.zeros((len(self.layers), count, self.width), dtype="<f4")
        if len(indices):
            places = np.asarray(indices) - self.written
            rows[:, places] = features
            self.labels[list(indices)], self.readable[list(indices)] = labels, True
        try:
            for file, values in zip(self.files.values(), rows, strict=True):
                file.write(values.data)
        except OSError as error:
            raise self._failed(error) from None
        self.bad += bad
        self.written += count

    def finish(self) -> None:
        """Writes the index files and renames the folder; raises StorageError if it cannot be written."""
        assert self.written == self.images
        try:
            for file in self.files.values():
                file.close()
            np.save(self.partial / "labels.npy", self.labels)
            np.save(self.partial / "rows.npy", np.flatnonzero(self.readable))
            sums = {path.name: _crc(path) for path in sorted(self.partial.iterdir())}
            document = {"about": self.about, OF: self.note, "bad": self.bad, "crc32": sums}
            (self.partial / ABOUT).write_text(json.dumps(document))
            shutil.rmtree(self.final, ignore_errors=True)
            self.partial.rename(self.final)
        except OSError as error:
            raise self._failed(error) from None
