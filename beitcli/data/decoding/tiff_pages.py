"""Pages of a TIFF: where their directories are, and one page as a file of its own, without the other pages' pixels.

A directory is copied with what its entries point to; strips or tiles follow, and their offsets are rewritten.
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from typing import BinaryIO

from beitcli.errors import BadImage, ReadFailed

MOST_PAGES = 100_000
_MOST_ENTRIES = 4096
_MOST_VALUE_BYTES = 1 << 26  # of one entry, such as the offsets of very many strips
_BYTES_OF = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_OFFSETS_AND_COUNTS = {273: 279, 324: 325}  # of strips, of tiles
_ELSEWHERE = (330, 34665, 34853, 40965)  # directories of thumbnails, EXIF and GPS
_COMPRESSION, _OLD_JPEG = 259, 6
_DAMAGED = BadImage("damaged: the directory of a TIFF page cannot be read")


@dataclass(frozen=True)
class _Layout:
    """Byte order and widths of a TIFF: classic or BigTIFF.

    Attributes:
        order: `<` or `>`.
        is_big: Whether offsets have 8 bytes.
    """

    order: str
    is_big: bool

    @property
    def offset(self) -> str:
        return self.order + ("Q" if self.is_big else "I")

    @property
    def count(self) -> str:
        return self.order + ("Q" if self.is_big else "H")

    @property
    def entry(self) -> str:
        return self.order + ("HHQ8s" if self.is_big else "HHI4s")


def page_offsets(file: BinaryIO) -> list[int]:
    """Returns the offsets of the directories of all pages; empty for what is no TIFF, or damaged at the first page."""
    found: dict[int, None] = {}  # in order, and without turning in circles
    try:
        layout, offset = _header(file)
        while offset and offset not in found and len(found) < MOST_PAGES:
            file.seek(offset)
            (entries,) = _unpack(file, layout.count)
            if entries > _MOST_ENTRIES:
                break
            file.seek(entries * struct.calcsize(layout.entry), os.SEEK_CUR)
            following = _unpack(file, layout.offset)
            found[offset] = None
            (offset,) = following
    except (struct.error, OSError, ValueError):
        pass  # the pages before are whole
    return list(found)


def _header(file: BinaryIO) -> tuple[_Layout, int]:
    """Returns the layout and the offset of the first directory. Raises ValueError for another file."""
    file.seek(0)
    start = file.read(16)
    order = {b"II": "<", b"MM": ">"}.get(start[:2])
    if order is None:
        raise ValueError("no TIFF")
    version = struct.unpack_from(order + "H", start, 2)[0]
    if version not in (42, 43):
        raise ValueError("no TIFF")
    layout = _Layout(order, version == 43)
    return layout, struct.unpack_from(layout.offset, start, 8 if layout.is_big else 4)[0]


def _unpack(file: BinaryIO, form: str) -> tuple[int, ...]:
    return struct.unpack(form, file.read(struct.calcsize(form)))


def page_file(file: BinaryIO, offset: int) -> bytes:
    """Returns a page as a TIFF of that page alone.

    Args:
        offset: One of `page_offsets`.

    Raises:
        BadImage: Its directory is damaged.
    """
    try:
        layout, _ = _header(file)
        entries = _entries(file, layout, offset)
        if _OLD_JPEG in entries.get(_COMPRESSION, (3, (0,)))[1]:  # its tables are wherever its tags say
            return _whole_file_from(file, layout, offset)
        return _built(file, layout, entries)
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # as of an offset before the file's beginning
            raise _DAMAGED from None
        raise ReadFailed(f"cannot be read: {error.strerror}") from None
    except (struct.error, ValueError, OverflowError, MemoryError):
        raise _DAMAGED from None


def _entries(file: BinaryIO, layout: _Layout, offset: int) -> dict[int, tuple[int, tuple[int, ...] | bytes]]:
    """Reads a directory: tag -> (type, whole numbers of SHORT, LONG and LONG8, else bytes)."""
    file.seek(offset)
    (number,) = _unpack(file, layout.count)
    if number > _MOST_ENTRIES:
        raise ValueError("too many entries")
    size = struct.calcsize(layout.entry)
    table = file.read(number * size)
    if len(table) < number * size:
        raise ValueError("the directory ends too early")
    entries: dict[int, tuple[int, tuple[int, ...] | bytes]] = {}
    for place in range(0, len(table) - size + 1, size):
        tag, kind, count, value = struct.unpack_from(layout.entry, table, place)
        length = count * _BYTES_OF.get(kind, 0)
        if tag in _ELSEWHERE or not length:
            continue
        if length > _MOST_VALUE_BYTES:
            raise ValueError("too long a value")
        if length > len(value):
            file.seek(struct.unpack(layout.offset, value)[0])
            value = file.read(length)
        if len(value) < length:
            raise ValueError("a value ends too early")
        letter = {3: "H", 4: "I", 16: "Q"}.get(kind)
        whole = struct.unpack(f"{layout.order}{count}{letter}", value[:length]) if letter else value[:length]
        entries[tag] = kind, whole
    return entries


def _built(file: BinaryIO, layout: _Layout, entries: dict[int, tuple[int, tuple[int, ...] | bytes]]) -> bytes:
    """Writes header, directory, values and pixels of one page."""
    head = struct.pack(layout.order + "2sHHHQ", b"", 43, 8, 0, 16) if layout.is_big else b""
    head = head or struct.pack(layout.order + "2sHI", b"", 42, 8)
    out = bytearray((b"II" if layout.order == "<" else b"MM") + head[2:])
    width = struct.calcsize(layout.offset)
    values_at = len(out) + struct.calcsize(layout.count) + len(entries) * struct.calcsize(layout.entry) + width
    pieces = bytearray()  # what lies behind the directory
    stored = file.seek(0, os.SEEK_END)
    for tag, counts_tag in _OFFSETS_AND_COUNTS.items():
        if tag not in entries or counts_tag not in entries:
            continue
        places: list[int] = []
        for start, length in zip(entries[tag][1], entries[counts_tag][1], strict=True):
            if len(pieces) + length > stored:
                raise ValueError("strips overlap, or lie beyond the end")
            file.seek(start)
            places.append(values_at + len(pieces))
            pieces += file.read(length)
        entries[tag] = (16 if layout.is_big else 4), tuple(places)
    out += struct.pack(layout.count, len(entries))
    for tag, (kind, whole) in sorted(entries.items()):
        letter = {3: "H", 4: "I", 16: "Q"}.get(kind, "")
        value = struct.pack(f"{layout.order}{len(whole)}{letter}", *whole) if letter else bytes(whole)
        count = len(value) // _BYTES_OF[kind]
        if len(value) > width:
            pieces += bytes(len(pieces) % 2)  # values begin at even offsets
            place, value = values_at + len(pieces), value
            pieces += value
            value = struct.pack(layout.offset, place)
        out += struct.pack(layout.entry, tag, kind, count, value)
    return bytes(out + struct.pack(layout.offset, 0) + pieces)


def _whole_file_from(file: BinaryIO, layout: _Layout, offset: int) -> bytes:
    """Returns the whole file with that page as its first."""
    file.seek(0)
    data = bytearray(file.read())
    struct.pack_into(layout.offset, data, 8 if layout.is_big else 4, offset)
    return bytes(data)
