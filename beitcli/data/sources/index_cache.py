"""What an earlier opening found, kept beside the cache: arrays in one file that is taken whole or not at all.

A file is a mark, the CRC-32 of the rest, and a JSON header before the arrays' bytes. A damaged or an old one is no
error: the caller looks again and writes it anew. Nothing unpickles.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from beitcli.runtime.hub.client import cache_folder

WORTH_KEEPING = 256  # images; fewer are found sooner than their index is read
SETTLED_NS = 2_000_000_000  # some file systems tell times to 2 s: what changed later may change again unseen
_MARK = b"beit-i1\n"  # another one with any change of what is kept
_ALIGNED = 8
_START = len(_MARK) + 8  # the CRC and the length of the header, 4 bytes each


def index_path(kind: str, path: str | bytes) -> Path:
    """Where the index of a file or folder lies: one for each path, so that a new one takes the old one's place.

    Args:
        kind: What is indexed; part of the name.
        path: Made absolute.
    """
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
    return cache_folder() / "indexes" / f"{kind}-{digest[:32]}"


def is_settled(changed_ns: int) -> bool:
    """Whether a change after now would change the time of the last one.

    Args:
        changed_ns: st_ctime_ns, which no program sets; tar and rsync restore the times of modification.
    """
    return time.time_ns() - changed_ns > SETTLED_NS


def load_index(path: Path, about: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """The arrays of an index; they are views of the file's bytes, read-only. None unless it is whole.

    Args:
        about: What it must have been made of.
    """
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < _START:  # nothing has the checksum of nothing
        return None
    check, length = (int.from_bytes(content[len(_MARK) + at : len(_MARK) + at + 4], "little") for at in (0, 4))
    if content[: len(_MARK)] != _MARK or zlib.crc32(memoryview(content)[len(_MARK) + 4 :]) != check:
        return None
    header = json.loads(content[_START : _START + length])
    if header["about"] != about:
        return None
    return {
        name: np.frombuffer(content, dtype=dtype, count=count, offset=offset)
        for name, dtype, count, offset in header["arrays"]
    }


def save_index(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps one-dimensional arrays; where the cache cannot be written nothing is kept.

    Args:
        about: What they follow from, as JSON has it: strings, integers, lists.
    """
    places = [(name, array.dtype.str, len(array)) for name, array in arrays.items()]
    offset = _aligned(_START + len(_header(about, [(*place, 1 << 60) for place in places])))
    placed = []
    for place, array in zip(places, arrays.values(), strict=True):
        placed.append((*place, offset))
        offset = _aligned(offset + array.nbytes)
    header = _header(about, placed)
    body = bytearray(offset - len(_MARK) - 4)
    body[:4] = len(header).to_bytes(4, "little")
    body[4 : 4 + len(header)] = header
    for (*_, start), array in zip(placed, arrays.values(), strict=True):
        begin = start - len(_MARK) - 4
        body[begin : begin + array.nbytes] = array.tobytes()
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(_MARK + zlib.crc32(body).to_bytes(4, "little"))
            file.write(body)
        beside.replace(path)
    except OSError:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _header(about: Mapping[str, Any], arrays: list[tuple[Any, ...]]) -> bytes:
    return json.dumps({"about": about, "arrays": arrays}).encode()


def _aligned(offset: int) -> int:
    return -(-offset // _ALIGNED) * _ALIGNED
