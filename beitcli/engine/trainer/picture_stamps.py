"""Tells a resumed run which of its pictures have changed under the same name since it began, by size and time.

`RUN/.pictures.jsonl` has a line a picture, of large data for 20,000 of them at equal distances: a stat takes some
microseconds, and on a network's disk some hundred. Of shards, the whole file is looked at.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable
from typing import Any

from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.storage.safe_json import parse_json

FILE = ".pictures.jsonl"
_MOST = 20_000


def changed_pictures(run: RunFolder, path_of: Callable[[int], str], images: int) -> str:
    """Returns a sentence that names the pictures that have changed; empty if none has. The first call writes the file.

    Args:
        path_of: Returns the path of an image, or of a member or row behind the path of its file.
        images: Number of images.
    """
    shard_stamps: dict[str, tuple[int, int] | None] = {}
    now = [[number, *_stamp(path_of(number), shard_stamps)] for number in range(0, images, -(-images // _MOST) or 1)]
    try:
        before = [parse_json(line) for line in read_regular(run.path / FILE).splitlines()]
    except (OSError, ValueError):
        before = []
    if not before:
        run.write_text(FILE, "".join(json.dumps(line) + "\n" for line in now))
        return ""
    pairs = [(old, new) for old, new in zip(before, now, strict=False) if _differ(old, new)]
    if not pairs or (len(pairs) == len(now) and all(old[1] == new[1] for old, new in pairs)):
        return ""  # where all times have changed and no size, the data was copied
    changed = [path_of(new[0]) for _, new in pairs]
    several = f"{len(changed):,} pictures" if len(changed) > 1 else "A picture"
    return f"{several} changed since the run began, by size or time, the first '{changed[0]}': the run goes on."


def _differ(old: Any, new: list[int]) -> bool:
    """Whether two lines of the same image differ; an image that is missing now is another matter."""
    return isinstance(old, list) and len(old) == 3 and old[0] == new[0] and new[1] >= 0 and old != new


def _stamp(path: str, shard_stamps: dict[str, tuple[int, int] | None]) -> tuple[int, int]:
    """Returns bytes and modification time in ns of a file, or of the shard that it is a part of; -1 if it is missing.

    Args:
        shard_stamps: Shards by path; grows.
    """
    found = _of_file(path)
    while found is None and (path := os.path.dirname(path)):
        if path not in shard_stamps:
            shard_stamps[path] = _of_file(path)
        found = shard_stamps[path]
        if path == os.path.dirname(path):
            break
    return found or (-1, -1)


def _of_file(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (-1, -1) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
