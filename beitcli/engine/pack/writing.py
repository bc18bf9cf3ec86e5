"""Writes a shard: an uncompressed tar of the images and their classes, which is read back before it counts."""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np

from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.formats.tar import TarSource
from beitcli.engine.io.outputs import OutputFile
from beitcli.engine.pack.encoding import encode
from beitcli.engine.pack.plan import Packing, Shard, members
from beitcli.engine.process_pool import is_stopped
from beitcli.engine.trainer.bad_images import Bad
from beitcli.errors import BadImage, DataError, ReadFailed, StorageError

_BLOCK, _RECORD = 512, 10_240  # of tar
_READ_TOGETHER = 256  # images that a source on the network is asked for at once


def member_bytes(content: int) -> int:
    """Returns the bytes of a member in a shard: its header, and `content` in whole blocks."""
    return _BLOCK + -(-content // _BLOCK) * _BLOCK


def shard_bytes(members: int) -> int:
    """Returns the bytes of a shard whose members take `members`: with the end mark, in whole records."""
    return -(-(members + 2 * _BLOCK) // _RECORD) * _RECORD


@dataclass
class Written:
    """A shard that is written and was read back.

    Attributes:
        bytes: Of the shard.
        source_bytes: Of the files of DATA whose images it holds.
        copied: Images that are the files of DATA.
        encoded: Images that were encoded as JPEG, and `levels`, the sum of their mean differences in levels of 255.
        bad: (index, path, reason) of the images that are left out.
    """

    file: str
    sha256: str = ""
    images: int = 0
    bytes: int = 0
    source_bytes: int = 0
    copied: int = 0
    encoded: int = 0
    levels: float = 0.0
    bad: list[Bad] = field(default_factory=list)


def write_shard(packing: Packing, shard: Shard) -> Written:
    """Writes `packing.folder`/`shard.name`, whole or not at all.

    Raises:
        DataError: Reading failed for another reason than an image, such as a disk or memory: what is good may not be
            left out.
        StorageError: The disk is full, the folder cannot be written, or the shard reads back otherwise.
    """
    written, source = Written(shard.name), packing.sources[shard.split]
    stored: list[tuple[int, str | None]] = []  # CRC-32 and class of each image

    def write(file: BinaryIO) -> None:
        tar = _Tar(file)
        for index in range(shard.first, shard.last):
            if is_stopped():
                raise StorageError(f"Shard '{shard.name}' is not finished.")
            if (index - shard.first) % _READ_TOGETHER == 0:
                source.prefetch(np.arange(index, min(index + 2 * _READ_TOGETHER, shard.last)))
            try:
                data = source.read(index)
                image = encode(data, packing.encoding, source.intensity)
            except ReadFailed as error:
                raise DataError(
                    f"'{source.path(index)}' could not be read: {error.message}.",
                    "Give the command again to go on; where memory ends, with fewer --workers.",
                ) from None
            except BadImage as error:
                written.bad.append((index, source.path(index), error.message))
                continue
            name = class_name(source, index)
            parts = members(packing.layouts[shard.split], f"{index:08d}", packing.encoding.suffix, name)
            for member, content in parts:
                tar.add(member, image.data if content is None else content)
            stored.append((zlib.crc32(image.data), name))
            written.source_bytes += len(data)
            written.copied += image.is_copy
            written.encoded += packing.encoding.kind == "jpeg" and not image.is_copy
            written.levels += image.levels
        tar.end()
        written.images, written.bytes, written.sha256 = len(stored), tar.bytes, tar.hash.hexdigest()

    path = packing.folder / shard.name
    OutputFile(path).write(write)
    if stored and not _reads_back(path, stored):
        path.unlink(missing_ok=True)
        raise StorageError(f"'{path}' is not what was written.", "Look for a failing disk, or give another folder.")
    return written


def class_name(source: Source, index: int) -> str | None:
    """Returns the class of an image; None without labels."""
    label = source.label(index)
    return None if label is None or source.classes is None else source.classes[label]


def _reads_back(path: Path, stored: list[tuple[int, str | None]]) -> bool:
    try:
        source = TarSource([str(path)], Request())
        if len(source) != len(stored):
            return False
        return all(
            zlib.crc32(source.read(index)) == crc and class_name(source, index) == name
            for index, (crc, name) in enumerate(stored)
        )
    except DataError:
        return False


class _Tar:
    """Members one after another, without times or owners: equal images make equal shards.

    Attributes:
        hash: SHA-256 of what is written.
        bytes: Their number.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.hash, self.bytes = file, hashlib.sha256(), 0

    def add(self, name: str, content: bytes) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._put(info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape"))
        self._put(content)
        self._put(bytes(-len(content) % _BLOCK))

    def end(self) -> None:
        """Writes the end mark, two empty blocks, and fills the last record."""
        self._put(bytes(2 * _BLOCK))
        self._put(bytes(-self.bytes % _RECORD))

    def _put(self, content: bytes) -> None:
        self._file.write(content)
        self.hash.update(content)
        self.bytes += len(content)
