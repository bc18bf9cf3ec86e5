"""Disk cache of dataset indexes, such as folder listings: named arrays in one file.

A file is safetensors with a CRC-32 in its metadata. Damaged files, and those of an earlier format, are cache misses:
the caller builds the index again and overwrites the file.
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

from beitcli.data.sources.index_note import INDEX
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.own_files import apply_umask
from beitcli.runtime.storage.regular_files import require_regular

WORTH_KEEPING = 256  # images; for fewer, reading the index takes longer than building it
SETTLED_NS = 2_000_000_000  # some file systems have a time resolution of 2 s: a later change could be missed
_FORMAT = "beit index 2"  # increment it with any change of the contents


def index_path(kind: str, path: str | bytes) -> Path:
    """Returns the cache path of the index of a file or folder; a new index replaces the old one.

    Args:
        kind: Kind of index, part of the file name.
        path: The file or folder; converted to an absolute path.
    """
    digest = hashlib.sha256(os.fsencode(os.path.abspath(path))).hexdigest()
    return cache_folder() / "indexes" / f"{kind}-{digest[:32]}"


def is_settled(changed_ns: int) -> bool:
    """Whether a later change would have a different time, so that an index made now can be validated by it.

    Args:
        changed_ns: st_ctime_ns, which programs cannot set; tar and rsync restore modification times.
    """
    return time.time_ns() - changed_ns > SETTLED_NS


def load_index(path: Path, about: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    """Loads the arrays of an index; None if it is missing, damaged or of other data.

    Args:
        about: Key of the data, as given to `save_index`.
    """
    try:
        require_regular(path)
        with safe_open(path, framework="np") as file:
            names = file.keys()
            metadata, arrays = file.metadata(), {name: file.get_tensor(name) for name in names}
    except (OSError, SafetensorError):
        return None
    return arrays if metadata == _metadata(about, arrays, _name_in(metadata)) else None


def save_index(path: Path, about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], of: str | bytes = "") -> None:
    """Writes an index to the cache; does nothing if the cache is not writable.

    Args:
        about: Key of the data from which it was built, with JSON values: strings, integers, lists.
        of: Name of the data for people, as `beit cache list` shows it.
    """
    contiguous = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
    beside = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(contiguous, beside, metadata=_metadata(about, contiguous, os.fsdecode(of)))
        apply_umask(beside)
        beside.replace(path)
    except (OSError, SafetensorError):
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def _metadata(about: Mapping[str, Any], arrays: Mapping[str, np.ndarray], of: str) -> dict[str, str]:
    """Returns metadata with a CRC-32 of names, types and data of the arrays; safetensors has no checksum."""
    check = zlib.crc32(os.fsencode(of))
    for name, array in sorted(arrays.items()):
        check = zlib.crc32(array.data, zlib.crc32(f"{name} {array.dtype.str} {array.shape}".encode(), check))
    entry = json.dumps([_FORMAT, about, check, *([of] if of else [])], sort_keys=True)
    return {INDEX: entry}  # one entry, so that equal indexes give equal files: safetensors does not keep an order


def _name_in(metadata: dict[str, str] | None) -> str:
    """Returns the name of the data in the metadata of a file; empty without one."""
    try:
        of = json.loads((metadata or {})[INDEX])[3]
        os.fsencode(of)
        return str(of)
    except (LookupError, ValueError, TypeError, RecursionError):
        return ""
