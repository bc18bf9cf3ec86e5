"""What a kept measurement of the processor is of, for people: the model's shape and the threads (stdlib only)."""

from __future__ import annotations

from pathlib import Path

from beitcli.runtime.metric_text import counted
from beitcli.runtime.storage.regular_files import read_untouched
from beitcli.runtime.storage.safe_json import parse_json

_LARGEST = 1 << 16  # bytes


def arithmetic_of(path: Path) -> str:
    """Returns `width 192, 65 tokens, 32 images, 2 threads`; empty if it is unreadable.

    The time of the last access, by which `beit cache prune` goes, stays as it is; where it cannot, nothing is read.
    """
    try:
        about = parse_json(read_untouched(path, _LARGEST))["about"]
        shape = about["shape"]
        numbers = [shape["width"], shape["length"], shape["images"], about["threads"]]
        if not all(type(each) is int for each in numbers):
            return ""
        width, tokens, images, threads = numbers
        beside = [counted(tokens, "token"), counted(images, "image"), counted(threads, "thread")]
        return ", ".join([f"width {width:,}", *beside])
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return ""
