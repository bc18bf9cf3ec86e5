"""Tar shards read at random: the headers are indexed once, then an image is one `pread`; nothing is extracted.

The class of an image is its parent folder, or in WebDataset shards what the `.cls` member of its key says.
Indexing costs some 20 microseconds an image; the index takes 20 bytes and the member's name.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.files import Labeller, PackedNames, choose_split, is_image_name, require_whole_labels
from beitcli.errors import BadImage, DataError

SPLITS = ("train", "val", "test")
COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_MAX_OPEN_SHARDS = 128  # past that a shard is opened for every read: macOS allows a process 256 files
_MAX_CLS_BYTES = 4096
_HIDDEN = re.compile(r"(?:^|/)\.(?!\.?/)")


class TarSource(Source):
    """Image members of several shards, in the order of the shards and of the members in them."""

    def __init__(
        self,
        shards: Sequence[str],
        *,
        name: str = "",
        split: str | None = None,
        role: str = "train",
        labelled: bool = False,
    ) -> None:
        """
        Args:
            shards: Paths of uncompressed tar files.
            name: The DATA reference; the first shard where it is empty.
            split: Which of the top folders `train`, `val` and `test` to take, where every image lies in one.
            role: "train" or "eval"; chooses where `split` is None and the shards hold several splits.
            labelled: Whether labels are needed, so that images without one are refused.

        Raises:
            DataError: a shard is missing, compressed or damaged, there are no images, or not in that split.
        """
        self.name = name or shards[0]
        self._shards = list(shards)
        self._files: dict[int, int] = {}
        names: list[bytes] = []
        shard_of, offsets, sizes, tops = array("i"), array("q"), array("q"), array("b")
        labeller = Labeller()
        for number, shard in enumerate(self._shards):
            for member, offset, size, class_name in _images(shard):
                names.append(member.encode("utf-8", "surrogateescape"))
                shard_of.append(number)
                offsets.append(offset)
                sizes.append(size)
                tops.append(_split_number(member))
                labeller.add(class_name)
        if not names:
            raise DataError(f"No images in '{self.name}'.", hint="Members are images by their names, such as .jpg.")
        kept = _in_split(self.name, np.array(tops, dtype=np.int8), split, role)
        self._names = PackedNames(names[index] for index in kept)
        self._shard_of = np.array(shard_of, dtype=np.int32)[kept]
        self._offsets = np.array(offsets, dtype=np.int64)[kept]
        self._sizes = np.array(sizes, dtype=np.int64)[kept]
        self.classes, self._labels = labeller.finish(kept)
        if labelled and self.classes is None:
            require_whole_labels(self.name, self._labels, self.path(int(np.argmin(self._labels))))

    def __len__(self) -> int:
        return len(self._names)

    def path(self, index: int) -> str:
        return f"{self._shards[self._shard_of[index]]}/{self._names[index].decode('utf-8', 'surrogateescape')}"

    def read(self, index: int) -> bytes:
        size = int(self._sizes[index])
        try:
            data = self._pread(int(self._shard_of[index]), size, int(self._offsets[index]))
        except OSError as error:
            raise BadImage(f"its shard cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise BadImage("its shard has become shorter")
        return data

    def label(self, index: int) -> int | None:
        return None if self.classes is None else int(self._labels[index])

    def _pread(self, shard: int, size: int, offset: int) -> bytes:
        """Reads without moving a file position, so forks and threads may share the open files."""
        file = self._files.get(shard)
        if file is None:
            opened = os.open(self._shards[shard], os.O_RDONLY)
            if len(self._files) < _MAX_OPEN_SHARDS:
                file = self._files.setdefault(shard, opened)
            if file != opened:  # too many are open, or another thread was faster
                try:
                    return os.pread(opened, size, offset)
                finally:
                    os.close(opened)
        return os.pread(file, size, offset)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_files": {}}

    def __del__(self) -> None:
        for file in getattr(self, "_files", {}).values():
            os.close(file)


def _images(shard: str) -> Iterator[tuple[str, int, int, str | None]]:
    """Yields (member, offset, size, class name or None) of the shard's images."""
    images: list[tuple[str, int, int]] = []
    class_of: dict[str, str] = {}
    for member, offset, size, content in _members(shard):
        if content is not None:
            class_of[member.removesuffix(".cls")] = _class_name(content)
        elif is_image_name(member.encode("utf-8", "surrogateescape")):
            images.append((member, offset, size))
    for member, offset, size in images:
        if class_of:
            folder, base = posixpath.split(member)
            key = posixpath.join(folder, base.partition(".")[0])
            yield member, offset, size, class_of.get(posixpath.splitext(member)[0], class_of.get(key))
        else:
            folders = [part for part in member.split("/")[:-1] if part not in ("", ".", "..")]
            is_class = folders and not (len(folders) == 1 and folders[0] in SPLITS)
            yield member, offset, size, folders[-1] if is_class else None


def _members(shard: str) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Yields (member, offset, size, content) of the visible files; content of `.cls` members only."""
    places: dict[str, tuple[int, int]] = {}
    try:
        with (
            open(shard, "rb") as file,
            tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape") as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep every header, a kilobyte each
                if member.islnk() and member.linkname in places:
                    places[member.name] = places[member.linkname]
                elif member.isreg():
                    places[member.name] = member.offset_data, member.size
                else:
                    continue
                name, (offset, size) = member.name.removeprefix("./"), places[member.name]
                if not _HIDDEN.search(name):
                    is_class = name.endswith(".cls")
                    content = os.pread(file.fileno(), min(size, _MAX_CLS_BYTES), offset) if is_class else None
                    yield name, offset, size, content
            _check_end(shard, archive.offset, os.pread(file.fileno(), tarfile.BLOCKSIZE, archive.offset))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damaged(shard, str(error)) from None
    except OSError as error:
        raise DataError(f"Shard '{shard}' cannot be read: {error.strerror}.", hint="Check the path.") from None


def _check_end(shard: str, offset: int, block: bytes) -> None:
    """Refuses a shard that does not end in zeros: tarfile takes a cut or a broken header for the end."""
    if not block:
        raise _damaged(shard, "the mark of its end is missing")
    if block.strip(b"\0"):
        raise _damaged(shard, f"no header at byte {offset:,}")


def _damaged(shard: str, reason: str) -> DataError:
    with open(shard, "rb") as file:
        start = file.read(8)
    for magic, tool in COMPRESSED.items():
        if start.startswith(magic):
            return DataError(
                f"Shard '{shard}' is compressed; images in it cannot be reached at random.",
                hint=f"Unpack it once with {tool}: images are compressed already, so it grows little.",
            )
    return DataError(f"Shard '{shard}' is cut short or damaged: {reason}.", hint="Download or write it again.")


def _class_name(content: bytes) -> str:
    """What a `.cls` member says: an integer in its shortest form, or a name."""
    text = content.decode("utf-8", "replace").strip()
    return str(int(text)) if re.fullmatch(r"-?[0-9]+", text) else text


def _split_number(member: str) -> int:
    top = member.lstrip("/").partition("/")[0]
    return SPLITS.index(top) if top in SPLITS else -1


def _in_split(name: str, tops: np.ndarray, split: str | None, role: str) -> np.ndarray:
    """Indices of the images of the split; of all where the shards do not tell splits apart.

    Args:
        name: The DATA reference.
        tops: (n,) int8, which of SPLITS the image's top folder is, or -1.
        split: `--split`, or None.
        role: "train" or "eval".
    """
    available = [SPLITS[number] for number in np.unique(tops) if number >= 0]
    if tops.min() < 0 or (split is None and len(available) == 1):
        return np.arange(len(tops))
    return np.flatnonzero(tops == SPLITS.index(choose_split(name, available, split, role)))
