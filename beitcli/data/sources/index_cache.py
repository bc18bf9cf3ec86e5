"""What an earlier opening found, kept beside the cache: arrays in one file that is taken whole or not at all.

A file is safetensors, with a CRC-32 in its metadata. A damaged one and one of an earlier format are no errors: the
caller looks again and writes it anew.
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
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from beitcli.runtime.hub.client import cache_folder

WORTH_KEEPING = 256  # images; fewer are found sooner than their index is read
SETTLED_NS = 2_000_000_000  # some file systems tell times to 2 s: what changed later may change again unseen
_FORMAT = "beit index 2"  # another number with any change of what is kept


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
    """The arrays of an index. None unless it is whole.

    Args:
        about: What it must have been made of.
    """
    try:
        with safe_open(path, framework="np") as file:
            names = file.keys()
            metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    return arrays if metadata == _metadata(about, arrays) else None


def save_index(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Keeps arrays; where the cache cannot be written nothing is kept.

    Args:
        about: What they follow from, as JSON has it: strings, integers, lists.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, beside, metadata=_metadata(about, contiguous))
        beside.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _metadata(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> dict[str, str]:
    """With a CRC-32 of the arrays, their names and types: safetensors checks no content."""
    check = 0
    for name, array in sorted(arrays.items()):
        check = zlib.crc32(array.data, zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), check))
    entry = json.dumps([_FORMAT, about, check], sort_keys=True)
    return {"index": entry}  # one entry: safetensors keeps no order, and equal indexes are equal files
