"""Reads the headers of a tar: v7, ustar, GNU and pax, with long names, sparse files and tars that were joined.

Every header is bounded: what one claims is compared with the size of the file before it is read, and headers that
describe the next header (long names, pax records) are counted. Plain headers are matched by one regular expression.
"""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal, NamedTuple

from beitcli.data.sources.formats._tar_fields import (
    BLOCK,
    MAX_EXTENSION_BYTES,
    HeaderError,
    Place,
    decimal,
    gnu_sparse,
    has_checksum,
    number,
    pax_sparse,
    read_exactly,
    read_place,
)

Kind = Literal["file", "hard link", "symbolic link", "folder", "other"]
MAX_EXTENSIONS = 32  # long names and pax headers before one member
_PLAIN = re.compile(  # name, size, checksum, type (a file, a folder), magic, prefix of the name in ustar
    rb"([^\0].{99}).{24}([0-7]{11})[\0 ].{12}([0-7]{6,7}[\0 ]{1,2})([05]).{100}(.{8}).{80}(.{155}).{12}", re.DOTALL
)
_RECORD = re.compile(rb"([0-9]{1,9}) ")
_KINDS: dict[bytes, Kind] = {
    **dict.fromkeys((b"0", b"\0", b"7", b"S"), "file"),
    b"1": "hard link",
    b"2": "symbolic link",
    b"5": "folder",
}
_NO_DATA = b"123456"  # links, devices, folders and pipes have none, whatever their size says
_CHUNK = 1_048_576


class Member(NamedTuple):
    """A member of a tar.

    Attributes:
        header: Offset of its own header, behind those of long names and pax records.
        link: Target of a link as it is written.
        part: Number of the tar among those that were joined.
    """

    name: str
    kind: Kind
    place: Place
    header: int
    link: str
    part: int


class TarReader:
    """Reads the members of a tar in order.

    Attributes:
        trailing: Bytes after the end mark that are no tar; known at the end.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.trailing = 0
        self._file, self._size = file.fileno(), os.fstat(file.fileno()).st_size
        self._part = 0
        self._globals: dict[bytes, bytes] = {}

    def members(self) -> Iterator[Member]:
        """Yields all members, behind end marks too, as `tar --ignore-zeros` does.

        Raises:
            HeaderError: A header is damaged or cut short, or the end mark is missing.
            OSError: The file cannot be read.
        """
        at, after_zeros = 0, False
        while True:
            block = os.pread(self._file, BLOCK, at)
            found = None if self._globals else self._plain(block, at)
            if found is None:
                if not block.strip(b"\0"):
                    following = self._after_zeros(at, len(block), after_zeros)
                    if following is None:
                        return
                    at, after_zeros, self._part = following, True, self._part + 1
                    continue
                found = self._extended(block, at)
            member, at = found
            after_zeros = False
            yield member

    def read(self, place: Place, most: int) -> bytes:
        """Returns the first bytes of a file."""
        return read_place(self._file, place, most)

    def _after_zeros(self, at: int, length: int, after_zeros: bool) -> int | None:
        """Returns the offset of the next header behind zeros; None at the end of the tar."""
        if not length:
            if not after_zeros:
                raise HeaderError("the mark of its end is missing")
            return None
        following = at
        while chunk := os.pread(self._file, _CHUNK, following):
            rest = len(chunk.lstrip(b"\0"))
            following += (len(chunk) - rest) // BLOCK * BLOCK if rest else len(chunk)
            if rest:
                break
        else:
            return None
        if has_checksum(os.pread(self._file, BLOCK, following)):
            return following
        if following - at < 2 * BLOCK:  # a block of zeros in the middle is damage, two are the end
            raise HeaderError(f"no header at byte {following:,}")
        self.trailing = self._size - following
        return None

    def _plain(self, block: bytes, at: int) -> tuple[Member, int] | None:
        """Returns a file or folder with a plain header, and the offset of the next one; None for any other header."""
        fields = _PLAIN.fullmatch(block)
        if fields is None:
            return None
        name, length, checksum, kind, magic, prefix = fields.groups()
        # Adler-32's low half is 1 + the sum of the bytes, modulo 65,521; the checksum field counts as spaces.
        total = int(checksum.rstrip(b"\0 "), 8) + sum(checksum) - 8 * 0x20
        size = int(length, 8) if kind == b"0" else 0
        following = at + BLOCK + -(-size // BLOCK) * BLOCK
        if zlib.adler32(block) & 0xFFFF != (total + 1) % 65_521 or following > self._size:
            return None
        place = Place(at + BLOCK, size)
        whole = _name(name, magic, prefix)
        return Member(whole, "file" if kind == b"0" else "folder", place, at, "", self._part), following

    def _extended(self, block: bytes, at: int) -> tuple[Member, int]:
        """Returns the member that begins at a header of any kind, and the offset of the next header."""
        records: dict[bytes, bytes] = {}
        long: dict[bytes, str] = {}
        for _ in range(MAX_EXTENSIONS):
            if not has_checksum(block):
                raise HeaderError(
                    f"no header at byte {at:,}" if len(block) == BLOCK else "the mark of its end is missing"
                )
            kind = block[156:157]
            if kind not in b"xXgLK":
                return self._member(block, at, records, long)
            size = number(block[124:136], at)
            if size > MAX_EXTENSION_BYTES:
                raise HeaderError(f"a long name or pax header of {size:,} bytes at byte {at:,}")
            content = read_exactly(self._file, at + BLOCK, size)
            if kind in b"LK":
                long[kind] = _text(content)
            else:
                (self._globals if kind == b"g" else records).update(_records(content, at))
            at += BLOCK + -(-size // BLOCK) * BLOCK
            block = os.pread(self._file, BLOCK, at)
        raise HeaderError(f"more than {MAX_EXTENSIONS} long names and pax headers in a row before byte {at:,}")

    def _member(self, block: bytes, at: int, records: dict[bytes, bytes], long: dict[bytes, str]) -> tuple[Member, int]:
        records = {key: value for key, value in (self._globals | records).items() if value}
        code, data = block[156:157], at + BLOCK
        name = long.get(b"L") or _name(block[:100], block[257:265] if code != b"S" else b"", block[345:500])
        name = _decoded(records[b"path"].rstrip(b"/")) if b"path" in records else name
        link = long.get(b"K") or _text(block[157:257])
        link = _decoded(records[b"linkpath"]) if b"linkpath" in records else link
        size = 0 if code in _NO_DATA else number(block[124:136], at)
        if b"size" in records and code not in _NO_DATA:
            size = decimal(records[b"size"], at)
        place = Place(data, size)
        kind = _KINDS.get(code, "other")
        if code == b"\0" and name.endswith("/"):  # how v7 marks a folder
            kind = "folder"
        elif code == b"S":
            place = gnu_sparse(self._file, block, size, at)
            data = place.offset
        elif kind == "file" and any(key.startswith(b"GNU.sparse.") for key in records):
            name = _decoded(records[b"GNU.sparse.name"]) if b"GNU.sparse.name" in records else name
            place = pax_sparse(self._file, place, records, at)
        following = data + -(-size // BLOCK) * BLOCK
        if following > self._size:
            raise HeaderError(f"'{name}' at byte {at:,} claims {size:,} bytes, more than are there")
        return Member(name, kind, place, at, link, self._part), following


def _records(content: bytes, at: int) -> dict[bytes, bytes]:
    """Parses pax records, `LENGTH KEY=VALUE` and a newline; pairs of GNU.sparse 0.0 become a map as in 0.1."""
    records: dict[bytes, bytes] = {}
    listed: list[bytes] = []
    start = 0
    while start < len(content) and content[start]:
        length = _RECORD.match(content, start)
        end = start + int(length[1]) if length else 0
        if not length or not length.end() < end <= len(content) or content[end - 1] != ord("\n"):
            raise HeaderError(f"damaged pax records at byte {at:,}")
        key, _, value = content[length.end() : end - 1].partition(b"=")
        if key in (b"GNU.sparse.offset", b"GNU.sparse.numbytes"):
            listed.append(value)
        elif key in (b"path", b"linkpath", b"size") or key.startswith(b"GNU.sparse."):
            records[key] = value
        start = end
    if listed:
        records[b"GNU.sparse.map"] = b",".join(listed)
    return records


def _name(name: bytes, magic: bytes, prefix: bytes) -> str:
    """Joins prefix and name; only ustar has a prefix, where old GNU headers have times and v7 ones anything."""
    before = prefix.partition(b"\0")[0] if magic.startswith(b"ustar\0") else b""
    name = name.partition(b"\0")[0]
    return _decoded(before + b"/" + name if before else name)


def _text(field: bytes) -> str:
    return _decoded(field.partition(b"\0")[0])


def _decoded(name: bytes) -> str:
    return name.decode("utf-8", "surrogateescape")
