"""Index of the images in a tar shard: headers are read once and cached.

Plain headers are parsed here, some 15 microseconds per member; from the first other header on, tarfile is used, which
takes three times as long. A cached index of a million images opens in a fraction of a second; its key is the path, size
and times of the shard.
"""

from __future__ import annotations

import os
import posixpath
import re
import tarfile
import zlib
from array import array
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from beitcli.data.sources.base import OnProgress
from beitcli.data.sources.files import Labeller, PackedNames, is_image_name
from beitcli.data.sources.index_cache import WORTH_KEEPING, index_path, is_settled, load_index, save_index
from beitcli.data.sources.splits import WORDS, is_split
from beitcli.errors import DataError

COMPRESSED = {b"\x1f\x8b": "gunzip", b"BZh": "bunzip2", b"\xfd7zXZ": "unxz", b"\x28\xb5\x2f\xfd": "unzstd"}
_ARRAYS = ("offsets", "sizes", "tops", "codes", "in_top")
_MAX_CLS_BYTES = 4096
_TELL_EVERY = 10_000  # members
_HIDDEN = re.compile(r"(?:^|/)\.(?!\.?/)")
_PLAIN = re.compile(  # name, size, checksum, type (a file, a folder), prefix of the name
    rb"([^\0].{99}).{24}([0-7]{11})[\0 ].{12}([0-7]{6,7}[\0 ]{1,2})([05]).{188}(.{155}).{12}", re.DOTALL
)
_Place = tuple[int, int]


@dataclass(frozen=True)
class TarIndex:
    """The images of one shard, in the order of the members.

    Attributes:
        names: Member names.
        offsets: (n,) int64, start of the data in the shard.
        sizes: (n,) int64, bytes.
        tops: (n,) int8, index in WORDS if the member's top folder has the name of a split, else -1.
        class_names: Class names, in no particular order.
        codes: (n,) int32 indices into `class_names`, -1 for images without a class.
        in_top: (n,) bool, whether the class is that top folder; if top folders are splits, it is not a class.
    """

    names: PackedNames
    offsets: np.ndarray
    sizes: np.ndarray
    tops: np.ndarray
    class_names: list[str]
    codes: np.ndarray
    in_top: np.ndarray


def index_shard(shard: str, on_progress: OnProgress | None = None) -> TarIndex:
    """Returns the index of a shard, from the cache or newly built.

    Raises:
        DataError: The shard is missing, compressed or damaged.
    """
    try:
        status = os.stat(shard)
    except OSError as error:
        raise _unreadable(shard, error) from None
    about = {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "ctime_ns": status.st_ctime_ns}
    about["version"] = 2  # of WORDS
    place = index_path("tar", shard)
    kept = load_index(place, about)
    if kept is not None:
        names, class_names = (PackedNames.of(kept[part], kept[f"{part} bounds"]) for part in ("names", "classes"))
        decoded = [name.decode("utf-8", "surrogateescape") for name in class_names]
        index = TarIndex(names=names, class_names=decoded, **{part: kept[part] for part in _ARRAYS})
        if _has_headers(shard, index):
            return index
    index = _make_index(shard, status.st_size, on_progress)
    if len(index.names) >= WORTH_KEEPING and is_settled(status.st_ctime_ns):
        classes = PackedNames(name.encode("utf-8", "surrogateescape") for name in index.class_names)
        arrays = {part: getattr(index, part) for part in _ARRAYS}
        for part, packed in (("names", index.names), ("classes", classes)):
            arrays |= {part: packed.block, f"{part} bounds": packed.bounds}
        save_index(place, about, arrays)
    return index


def _has_headers(shard: str, index: TarIndex) -> bool:
    """Whether the first and the last image follow a header: another tar may have the same size and times."""
    try:
        with open(shard, "rb") as file:
            for at in (0, -1):
                start = int(index.offsets[at]) - tarfile.BLOCKSIZE
                header = os.pread(file.fileno(), tarfile.BLOCKSIZE, start)
                tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape")
    except (OSError, tarfile.HeaderError):
        return False
    return True


def _make_index(shard: str, size: int, on_progress: OnProgress | None) -> TarIndex:
    offsets, sizes, tops, labeller = array("q"), array("q"), array("b"), Labeller()
    class_of: dict[str, str] = {}

    def images() -> Iterator[bytes]:
        for number, (member, offset, length, content) in enumerate(_members(shard), start=1):
            if on_progress is not None and number % _TELL_EVERY == 0:
                on_progress(f"indexing {posixpath.basename(shard)}", min(offset + length, size), size, "byte")
            if content is not None:
                class_of[member.removesuffix(".cls")] = _class_name(content)
            elif is_image_name(name := member.encode("utf-8", "surrogateescape")):
                offsets.append(offset)
                sizes.append(length)
                tops.append(_split_number(member))
                yield name

    names = PackedNames(images())
    in_top = np.zeros(len(names), dtype=bool)
    for number, name in enumerate(names):
        class_name, in_top[number] = _class_of(name.decode("utf-8", "surrogateescape"), class_of)
        labeller.add(class_name)
    class_names, codes = labeller.codes()
    placed = np.array(offsets, dtype=np.int64), np.array(sizes, dtype=np.int64)
    return TarIndex(names, *placed, np.array(tops, dtype=np.int8), class_names, codes, in_top)


def _class_of(member: str, class_of: dict[str, str]) -> tuple[str | None, bool]:
    """Returns the class of a member, by its key in `class_of` or, if that is empty, by its folder; and `in_top`."""
    if class_of:
        folder, base = posixpath.split(member)
        key = posixpath.join(folder, base.partition(".")[0])
        return class_of.get(posixpath.splitext(member)[0], class_of.get(key)), False
    folders = [part for part in member.split("/")[:-1] if part not in ("", ".", "..")]
    return (folders[-1] if folders else None), len(folders) == 1 and is_split(folders[0])


def _members(shard: str) -> Iterator[tuple[str, int, int, bytes | None]]:
    """Yields (member, offset, size, content) of the visible files; content of `.cls` members only."""
    places: dict[str, _Place] | None = None  # filled at the first hard link
    try:
        with open(shard, "rb") as file:
            file.seek((yield from _plain_members(file)))
            archive = _opened(file)
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # frees the headers, a kilobyte each
                place = member.offset_data, member.size
                if member.islnk():
                    places = _places_before(shard, member.offset) if places is None else places
                    if member.linkname not in places:
                        continue
                    place = places[member.linkname]
                elif not member.isreg() or member.sparse is not None:  # data of sparse files is not contiguous
                    continue
                if places is not None:
                    places[member.name] = place
                yield from _visible(file, member.name, *place)
            _check_end(shard, archive.offset, os.pread(file.fileno(), tarfile.BLOCKSIZE, archive.offset))
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise _damaged(shard, str(error)) from None
    except OSError as error:
        raise _unreadable(shard, error) from None


def _visible(file: BinaryIO, name: str, offset: int, size: int) -> Iterator[tuple[str, int, int, bytes | None]]:
    name = name.removeprefix("./")
    if not _HIDDEN.search(name):
        is_class = name.endswith(".cls")
        content = os.pread(file.fileno(), min(size, _MAX_CLS_BYTES), offset) if is_class else None
        yield name, offset, size, content


def _plain_members(file: BinaryIO) -> Generator[tuple[str, int, int, bytes | None], None, int]:
    """Like `_members`, up to the first header that is not plain; returns its offset.

    Plain headers are those of files and folders in the POSIX.1-1988 format, with a valid checksum.
    """
    start, end = 0, os.fstat(file.fileno()).st_size
    while True:
        block = os.pread(file.fileno(), tarfile.BLOCKSIZE, start)
        fields = _PLAIN.fullmatch(block)
        if fields is None:
            return start
        name, length, checksum, kind, prefix = fields.groups()
        # Adler-32's low half is 1 + the sum of the bytes, modulo 65,521; the checksum field counts as spaces.
        total = int(checksum.rstrip(b"\0 "), 8) + sum(checksum) - 8 * 0x20
        offset, size = start + tarfile.BLOCKSIZE, int(length, 8) if kind == b"0" else 0
        following = offset + -(-size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
        if zlib.adler32(block) & 0xFFFF != (total + 1) % 65_521 or following > end:
            return start
        start = following
        if kind == b"0":
            whole = b"/".join(part for part in (prefix.partition(b"\0")[0], name.partition(b"\0")[0]) if part)
            yield from _visible(file, whole.decode("utf-8", "surrogateescape"), offset, size)


def _opened(file: BinaryIO) -> tarfile.TarFile:
    return tarfile.open(fileobj=file, mode="r:", encoding="utf-8", errors="surrogateescape")


def _places_before(shard: str, end: int) -> dict[str, _Place]:
    """Returns (offset, size) of the files before the first hard link, which may be its target."""
    places: dict[str, _Place] = {}
    with open(shard, "rb") as file, _opened(file) as archive:
        while (member := archive.next()) is not None and member.offset < end:
            archive.members = []  # type: ignore[attr-defined]
            if member.isreg():
                places[member.name] = member.offset_data, member.size
    return places


def _unreadable(shard: str, error: OSError) -> DataError:
    return DataError(f"Shard '{shard}' cannot be read: {error.strerror}.", hint="Check the path.")


def _check_end(shard: str, offset: int, block: bytes) -> None:
    """Raises DataError if the archive does not end in zeros: tarfile takes a damaged header for the end."""
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
    """Returns the class in a `.cls` member: a name, or an integer without leading zeros."""
    text = content.decode("utf-8", "replace").strip()
    return str(int(text)) if re.fullmatch(r"-?[0-9]+", text) else text


def _split_number(member: str) -> int:
    top = member.lstrip("/").partition("/")[0]
    return WORDS.index(top.lower()) if is_split(top) else -1
