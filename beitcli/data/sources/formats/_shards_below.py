"""Finds the parquet files and tar shards of a folder, such as a cloned data set, and opens them as one source."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace

from beitcli.data.sources.base import OnProgress, Source
from beitcli.data.sources.files import count_of_images
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats._tar_index import index_shard
from beitcli.data.sources.formats.parquet import open_parquet
from beitcli.data.sources.formats.tar import TarSource
from beitcli.data.sources.splits import files_of_split
from beitcli.errors import BeitError

MOST_ENTRIES = 50_000  # of the folders, the upper ones first: less than 0.1 s
_ENDINGS = (".parquet", ".tar")


@dataclass(frozen=True)
class Shards:
    """The shards of one format in a folder.

    Attributes:
        ending: `.parquet` or `.tar`.
        files: Paths relative to the folder, sorted.
        images: Number of images in all of them, 0 if they cannot be read.
        problem: Why they cannot be read; None if they can.
    """

    ending: str
    files: list[str]
    images: int
    problem: BeitError | None = None

    def __str__(self) -> str:
        files = f"{len(self.files):,} {self.ending} file{'s'[: len(self.files) > 1]}"
        return f"the {count_of_images(self.images)} in {files}" if self.images else files


def shards_below(root: str, on_progress: OnProgress | None = None, *, most: int | None = MOST_ENTRIES) -> list[Shards]:
    """Lists the shards below a folder, those with the most images first.

    Args:
        on_progress: Receives the progress of indexing.
        most: How many entries of folders to look at; None for all.
    """
    found: dict[str, list[str]] = {ending: [] for ending in _ENDINGS}
    for path in shard_files(root, most):
        found[os.path.splitext(path)[1].lower()].append(path)
    shards = [_counted(root, ending, sorted(files), on_progress) for ending, files in found.items() if files]
    return sorted(shards, key=lambda each: -each.images)


def open_shards(root: str, shards: Shards, request: Request) -> Source:
    """Opens the shards of a folder, or those of the split.

    Raises:
        DataError: They cannot be read, or have no such split.
    """
    if shards.ending == ".tar":
        paths = [os.path.join(root, file) for file in shards.files]
        return TarSource(paths, replace(request, name=root), folder=root)
    chosen, splits = files_of_split(root, shards.files, request)
    source = open_parquet([os.path.join(root, file) for file in chosen], replace(request, name=root))
    source.splits = splits
    return source


def _counted(root: str, ending: str, files: list[str], on_progress: OnProgress | None) -> Shards:
    paths = [os.path.join(root, file) for file in files]
    try:
        if ending == ".tar":
            images = sum(len(index_shard(path, on_progress).names) for path in paths)
        else:
            images = len(open_parquet(paths, Request(name=root)))
    except BeitError as error:
        return Shards(ending, files, 0, error)
    return Shards(ending, files, images)


def shard_files(root: str, most: int | None = MOST_ENTRIES) -> Iterator[str]:
    """Yields the shards below a folder as relative paths, breadth first, without hidden ones."""
    pending, seen, looked_at = [""], set[tuple[int, int]](), 0
    for folder in pending:  # grows
        try:
            status = os.stat(os.path.join(root, folder))
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(os.path.join(root, folder)) as entries:
                for entry in entries:
                    looked_at += 1
                    if most is not None and looked_at > most:
                        return
                    is_folder = entry.is_dir()
                    if entry.name[0] != "." and (is_folder or entry.name.lower().endswith(_ENDINGS)):
                        path = os.path.join(folder, entry.name)
                        if is_folder:
                            pending.append(path)
                        else:
                            yield path
        except OSError:
            continue
