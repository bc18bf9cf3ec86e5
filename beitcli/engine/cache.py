"""`beit cache`: what lies in the cache folder, by kind, size and last use; removes what is asked for (stdlib only).

| kind | below the cache folder | an entry |
|---|---|---|
| features | features/ | the features of one model on one data set |
| streams | streams/ | the ranges of one remote file |
| downloads | dall-e/, hub/, listings/ | a folder or file in these |
| indexes | indexes/ | the list of one folder or tar |
| arithmetic | arithmetic/ | how fast this processor is, for one model's shapes |

Weights of the hub lie in Hugging Face's own cache, which other programs share, unless BEIT_CACHE_DIR is set: it is left
alone (`hf cache` shows it). Token caches lie where --token-cache put them. An entry that a process has open, or that
was changed in the last minute, is in use and never removed.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from beitcli.config.cache import CacheConfig
from beitcli.data.caches.feature_note import ABOUT, features_of
from beitcli.data.sources.index_note import index_of
from beitcli.errors import StorageError
from beitcli.runtime.compute.arithmetic_note import arithmetic_of
from beitcli.runtime.storage.cache_folder import cache_folder
from beitcli.runtime.storage.own_files import remove_entry

_FOLDERS = {
    "features": "features",
    "streams": "streams",
    "dall-e": "downloads",
    "hub": "downloads",
    "listings": "downloads",
    "indexes": "indexes",
    "arithmetic": "arithmetic",
}
_OWN = {  # names of what this program writes there: a folder of that name may be somebody's own
    "features": r"[0-9a-f]{32}(\.partial-\d+)?",
    "streams": r"[0-9a-f]{32}",
    "indexes": r".+-[0-9a-f]{32}(\.\d+)?",
    "dall-e": r"[0-9a-f]{16}|(en|de)coder\.safetensors|weights\.sha256",
    "hub": r"(models|datasets|spaces)--.+",
    "listings": r".+--.+\.json",
    "arithmetic": r"[0-9a-f]{32}\.json",
}
_OF = {"features": features_of, "indexes": index_of, "arithmetic": arithmetic_of}
_JUST_CHANGED = 60.0  # seconds


@dataclass(frozen=True)
class Entry:
    """A part of the cache that is removed as a whole.

    Attributes:
        name: Path below the cache folder.
        bytes: Size of its files.
        used: Last time that a file of it was written or read, in seconds since 1970; a note that `list` itself reads
            counts as written alone.
        of: Of features: the model and the images that they are of; of an index: the folder, tar or remote file; of a
            measurement of the processor: the model's shape and the threads. Empty where that is not known.
    """

    kind: str
    name: str
    path: str
    bytes: int
    used: float
    of: str = ""


@dataclass(frozen=True)
class KindTotal:
    """All entries of one kind together."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class Cache:
    """What lies in the cache.

    Attributes:
        bytes: Of all entries together.
        kinds: Kind -> its entries and bytes, the largest first.
        entries: The largest first.
    """

    folder: str
    bytes: int
    kinds: dict[str, KindTotal]
    entries: list[Entry]


@dataclass(frozen=True)
class Pruned:
    """What was removed, or would be.

    Attributes:
        freed: Bytes.
        in_use: Entries that were asked for and are in use.
    """

    folder: str
    dry_run: bool
    freed: int
    removed: list[Entry]
    in_use: list[Entry]


def list_cache(config: CacheConfig) -> Cache:
    """Returns the entries that the config asks for; none where there is no cache yet.

    Raises:
        StorageError: The folder cannot be read.
    """
    folder = cache_folder()
    try:
        entries = [each for each in _entries(folder) if _is_selected(config, each)]
    except OSError as error:
        raise StorageError(f"The cache '{folder}' cannot be read: {error.strerror}.", "Set BEIT_CACHE_DIR.") from None
    entries.sort(key=lambda each: (-each.bytes, each.name))
    return Cache(str(folder), sum(each.bytes for each in entries), _totals(entries), entries)


def _totals(entries: Sequence[Entry]) -> dict[str, KindTotal]:
    sizes: dict[str, list[int]] = {}
    for each in entries:
        sizes.setdefault(each.kind, []).append(each.bytes)
    return {kind: KindTotal(len(own), sum(own)) for kind, own in sorted(sizes.items(), key=lambda pair: -sum(pair[1]))}


def prune_cache(config: CacheConfig) -> Pruned:
    """Removes the entries that the config asks for, except those in use.

    Raises:
        StorageError: One cannot be removed.
    """
    cache = list_cache(config)
    opened = _open_files(cache.folder) if cache.entries else set()
    now = time.time()
    removed, in_use = [], []
    for entry in cache.entries:
        below = os.path.realpath(entry.path)
        is_open = any(path == below or path.startswith(below + os.sep) for path in opened)
        if is_open or now - _changed(Path(entry.path)) < _JUST_CHANGED:
            in_use.append(entry)
            continue
        if not config.dry_run:
            try:
                remove_entry(Path(entry.path))
            except FileNotFoundError:  # another process was faster
                pass
            except OSError as error:
                raise StorageError(
                    f"'{entry.path}' cannot be removed: {error.strerror}.", "Ask its owner, or set BEIT_CACHE_DIR."
                ) from None
        removed.append(entry)
    return Pruned(cache.folder, config.dry_run, sum(each.bytes for each in removed), removed, in_use)


def _is_selected(config: CacheConfig, entry: Entry) -> bool:
    is_old = time.time() - entry.used >= config.seconds
    return (not config.kind or entry.kind in config.kind) and is_old and entry.bytes > config.bytes


def _entries(folder: Path) -> Iterator[Entry]:
    for name, kind in _FOLDERS.items():
        parent = folder / name
        if parent.is_symlink() or not parent.is_dir():
            continue
        if name == "hub" and os.path.realpath(parent) == _shared_hub():
            continue
        for path in sorted(parent.iterdir()):
            if not re.fullmatch(_OWN[name], path.name):
                continue
            size, used = 0, 0.0
            for file, status in _statuses(path):
                size += status.st_size
                read = status.st_atime if kind != "features" or file.name != ABOUT else 0.0
                used = max(used, status.st_mtime, read)
            of = _OF[kind](path) if kind in _OF else ""
            yield Entry(kind, f"{name}/{path.name}", str(path), size, used, of)


def _statuses(path: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yields a file, or all files below a folder, each with its status; links are not followed."""
    if path.is_symlink() or not path.is_dir():
        with suppress(FileNotFoundError):
            yield path, path.lstat()
        return
    is_empty = True
    for folder, _, names in os.walk(path):
        for name in names:
            is_empty = False
            file = Path(folder, name)
            with suppress(FileNotFoundError):
                yield file, file.lstat()
    if is_empty:
        with suppress(FileNotFoundError):
            yield path, path.lstat()


def _shared_hub() -> str:
    """Returns the hub's cache that other programs share."""
    home = os.environ.get("HF_HOME") or os.path.join(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface")
    return os.path.realpath(os.path.expanduser(os.environ.get("HF_HUB_CACHE") or os.path.join(home, "hub")))


def _changed(path: Path) -> float:
    return max((status.st_ctime for _, status in _statuses(path)), default=0.0)


def _open_files(folder: str) -> set[str]:
    """Returns the files below a folder that processes have open or mapped, where the system says so (Linux)."""
    root, found = os.path.realpath(folder) + os.sep, set()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            for descriptor in os.scandir(process / "fd"):
                with suppress(OSError):
                    found.add(os.readlink(descriptor.path))
        with suppress(OSError):
            for line in (process / "maps").read_text(errors="surrogateescape").splitlines():
                found.add(line.split(maxsplit=5)[-1])
    return {path for path in found if path.startswith(root)}
