"""What the index of a data set is of, for people: read from the header of its file alone (stdlib only)."""

from __future__ import annotations

from pathlib import Path

from beitcli.runtime.storage.regular_files import read_untouched
from beitcli.runtime.storage.safe_json import parse_json

INDEX = "index"  # name of the entry in the file's metadata
_LARGEST = 1 << 16  # bytes of a header
_LONGEST = 300  # characters


def index_of(path: Path) -> str:
    """Returns the folder, tar or remote file that an index is of; empty if unreadable or of an earlier version.

    The time of the last access, by which `beit cache prune` goes, stays as it is; where it cannot, nothing is read.
    """
    try:
        start = read_untouched(path, 8 + _LARGEST)
        size = int.from_bytes(start[:8], "little")
        header = parse_json(start[8 : 8 + size]) if 0 < size <= _LARGEST else {}
        of = parse_json(header["__metadata__"][INDEX].encode())[3]
        return of[-_LONGEST:] if isinstance(of, str) else ""
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
