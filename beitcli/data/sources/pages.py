"""`--pages all`: each page of a TIFF is an image, named `stack.tif#page=3`; other images stay as they are."""

from __future__ import annotations

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np

from beitcli.data.decoding.tiff_pages import page_file, page_offsets
from beitcli.data.sources.base import OnProgress, Source
from beitcli.errors import BadImage, UsageError
from beitcli.runtime.storage.regular_files import open_regular

PAGE = "#page="  # between a file and the number of its page
_ENDINGS = (".tif", ".tiff")
_TELL_EVERY = 1000  # files


class PagesSource(Source):
    """The pages of a source's TIFFs, and its other images, in its order.

    Attributes:
        source: The source of the files.

    Args:
        on_progress: Receives the number of files whose pages are counted, and how many pages there are.

    Raises:
        UsageError: The images are rows of parquet, all of which would have to be read to count pages.
    """

    def __init__(self, source: Source, on_progress: OnProgress | None = None) -> None:
        if source.blocks() is not None:
            raise UsageError(
                f"'{source.name}' is read by the block, in which pages are not looked for.",
                "Leave --pages out, or save the files in a folder.",
            )
        self.source = source
        self.name, self.classes, self.splits = source.name, source.classes, source.splits
        self.label_names = source.label_names
        files, pages, offsets = array("q"), array("i"), array("q")
        for index in range(len(source)):
            found = self._count(index)
            for page, offset in enumerate(found if len(found) > 1 else [0]):
                files.append(index)
                pages.append(page + 1 if len(found) > 1 else 0)
                offsets.append(offset)
            if on_progress is not None and index % _TELL_EVERY == _TELL_EVERY - 1:
                on_progress("counting pages", index + 1, len(source), "file")
        self._file_of = np.array(files, dtype=np.int64)
        self._page_of, self._offset_of = np.array(pages, dtype=np.int32), np.array(offsets, dtype=np.int64)
        if on_progress is not None:
            on_progress(f"'{self.name}': {len(self):,} pages of {len(source):,} files are images.", 0, 0, "")

    def _count(self, index: int) -> list[int]:
        """Returns the offsets of a file's pages; empty for a file that is no TIFF or cannot be read."""
        if not self.source.path(index).lower().endswith(_ENDINGS):
            return []
        try:
            with self._opened(index) as file:
                return page_offsets(file)
        except BadImage:
            return []

    @contextmanager
    def _opened(self, index: int) -> Iterator[BinaryIO]:
        """Opens a file of its own, of which only the page is read, else the member of a shard."""
        try:
            file: BinaryIO = open_regular(self.source.path(index))
        except (OSError, ValueError):
            file = BytesIO(self.source.read(index))
        with file:
            yield file

    def __len__(self) -> int:
        return len(self._file_of)

    def inner(self) -> tuple[Source, ...]:
        return (self.source,)

    def path(self, index: int) -> str:
        path, page = self.source.path(int(self._file_of[index])), int(self._page_of[index])
        return f"{path}{PAGE}{page}" if page else path

    def read(self, index: int) -> bytes:
        if not self._page_of[index]:
            return self.source.read(int(self._file_of[index]))
        with self._opened(int(self._file_of[index])) as file:
            return page_file(file, int(self._offset_of[index]))

    def label(self, index: int) -> int | None:
        return self.source.label(int(self._file_of[index]))

    def label_vector(self, index: int) -> np.ndarray | None:
        return self.source.label_vector(int(self._file_of[index]))
