"""Numbers in the headers of a tar, and where the bytes of a file are: in one place, or in pieces if it is sparse."""

from __future__ import annotations

import os
import re
from typing import NamedTuple

BLOCK = 512
MAX_EXTENSION_BYTES = 1_048_576  # of one long name, of the pax records or of the sparse map of a member
_OCTAL = re.compile(rb"[0-7]*")
_DECIMAL = re.compile(rb"[0-9]{1,19}")

Piece = tuple[int, int, int]  # of a sparse file: place in the file, offset in the tar, bytes


class HeaderError(Exception):
    """A header is damaged, cut short or beyond the bounds."""


class Place(NamedTuple):
    """Where the bytes of a file are.

    Attributes:
        offset: Of the data in the tar.
        size: Of the file in bytes; for a sparse file with its holes.
        pieces: What is stored of a sparse file, in order; None for other files.
    """

    offset: int
    size: int
    pieces: tuple[Piece, ...] | None = None


def read_place(file: int, place: Place, most: int | None = None) -> bytes:
    """Reads a file of a tar, the holes of a sparse one as zeros; shorter if the tar has become shorter.

    Args:
        file: Descriptor of the tar.
        most: How many bytes to read; None for all.
    """
    size = place.size if most is None else min(place.size, most)
    if place.pieces is None:
        return os.pread(file, size, place.offset)
    content = bytearray(size)
    for start, offset, length in place.pieces:
        length = min(length, size - start)
        if length > 0:
            piece = os.pread(file, length, offset)
            if len(piece) < length:
                return b""
            content[start : start + length] = piece
    return bytes(content)


def read_exactly(file: int, at: int, size: int) -> bytes:
    """Reads what a header claims. Raises HeaderError if it is not there."""
    content = os.pread(file, size, at)
    if len(content) < size:
        raise HeaderError(f"{size:,} bytes are claimed at byte {at:,}, more than are there")
    return content


def has_checksum(block: bytes) -> bool:
    """Whether a block is a header by its checksum, of signed or unsigned bytes."""
    stored = _OCTAL.fullmatch(block[148:156].partition(b"\0")[0].strip(b" "))
    if len(block) != BLOCK or stored is None or not stored[0]:
        return False
    unsigned = sum(block) - sum(block[148:156]) + 8 * 0x20
    total = int(stored[0], 8)
    return total == unsigned or total == unsigned - 256 * sum(byte >> 7 for byte in block)


def number(field: bytes, at: int) -> int:
    """Parses an octal or base-256 number of the header at byte `at`."""
    if field[:1] == b"\x80":
        return int.from_bytes(field[1:])
    digits = _OCTAL.fullmatch(field.partition(b"\0")[0].strip(b" "))
    if digits is None:
        raise HeaderError(f"a size that is no number at byte {at:,}")
    return int(digits[0] or b"0", 8)


def decimal(value: bytes, at: int) -> int:
    """Parses a number of the pax records at byte `at`."""
    if not _DECIMAL.fullmatch(value):
        raise HeaderError(f"a size that is no number at byte {at:,}")
    return int(value)


def gnu_sparse(file: int, block: bytes, stored: int, at: int) -> Place:
    """Returns the place of an old GNU sparse file; its data begins behind the blocks of its map.

    Args:
        block: Its header, at byte `at`.
        stored: Bytes of its data.
    """
    entries, more, data = bytearray(block[386:482]), block[482:483], at + BLOCK
    while more != b"\0":
        if len(entries) > MAX_EXTENSION_BYTES:
            raise HeaderError(f"a sparse map of more than {MAX_EXTENSION_BYTES:,} bytes at byte {at:,}")
        extension = read_exactly(file, data, BLOCK)
        entries += extension[:504]
        more, data = extension[504:505], data + BLOCK
    numbers: list[int] = []
    for start in range(0, len(entries), 24):
        place, length = bytes(entries[start : start + 12]), bytes(entries[start + 12 : start + 24])
        if not length.strip(b"\0"):
            break
        numbers += number(place, at), number(length, at)
    return _sparse(numbers, Place(data, stored), number(block[483:495], at), at)


def pax_sparse(file: int, place: Place, records: dict[bytes, bytes], at: int) -> Place:
    """Returns the place of a sparse file in the pax formats 0.0, 0.1 and 1.0 of GNU tar.

    Args:
        place: What is stored, in format 1.0 behind the map.
        records: Pax records of the member whose header is at byte `at`.
    """
    real = records.get(b"GNU.sparse.realsize", records.get(b"GNU.sparse.size"))
    if real is None:
        raise HeaderError(f"a sparse file without its size at byte {at:,}")
    if records.get(b"GNU.sparse.major", b"0") == b"0":
        listed = records.get(b"GNU.sparse.map", b"").split(b",")
        return _sparse([decimal(each, at) for each in listed if each], place, decimal(real, at), at)
    head = read_exactly(file, place.offset, min(place.size, MAX_EXTENSION_BYTES))
    count, _, rest = head.partition(b"\n")
    pairs = decimal(count, at)
    lines = rest.split(b"\n", 2 * pairs)[:-1] if pairs < len(head) else []
    if len(lines) != 2 * pairs:
        raise HeaderError(f"a damaged sparse map at byte {at:,}")
    length = len(count) + 1 + sum(len(line) + 1 for line in lines)
    length = -(-length // BLOCK) * BLOCK
    behind = Place(place.offset + length, place.size - length)
    return _sparse([decimal(line, at) for line in lines], behind, decimal(real, at), at)


def _sparse(numbers: list[int], stored: Place, real: int, at: int) -> Place:
    """Checks a sparse map, pairs of place and length; returns the file's place."""
    pieces: list[Piece] = []
    end = used = 0
    if len(numbers) % 2:
        raise HeaderError(f"a damaged sparse map at byte {at:,}")
    for start, length in zip(numbers[::2], numbers[1::2], strict=True):
        if start < end or start + length > real:
            raise HeaderError(f"a sparse map out of order at byte {at:,}")
        if length:
            pieces.append((start, stored.offset + used, length))
        end, used = start + length, used + length
    if used > stored.size or real >> 63:
        raise HeaderError(f"a sparse file of more bytes than are there at byte {at:,}")
    return Place(stored.offset, real, tuple(pieces))
