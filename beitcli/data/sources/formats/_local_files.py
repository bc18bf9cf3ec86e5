"""Images that are files of this disk, each with a class or none."""

from __future__ import annotations

import os
from abc import abstractmethod

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import file_size, read_file


class LocalFiles(Source):
    """Reads the file of each image; a subclass knows its path, and sets `classes` and `_labels`."""

    _labels: np.ndarray  # (n,) int32, indices into `classes`

    @abstractmethod
    def _file(self, index: int) -> bytes:
        """Returns the path, as bytes because file names need not be UTF-8."""

    def path(self, index: int) -> str:
        return os.fsdecode(self._file(index))

    def read(self, index: int) -> bytes:
        return read_file(self._file(index))

    def stored_bytes(self, index: int) -> int | None:
        return file_size(self._file(index))

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])
