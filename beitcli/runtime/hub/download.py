"""Downloads one file of the hub with huggingface_hub, into the cache shared with other clients.

huggingface_hub provides Xet, locks, proxies and retries. It only compares sizes, so the SHA-256 that the hub announces
is checked here.
"""

from __future__ import annotations

import errno
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.file_download import repo_folder_name
from tqdm import tqdm

from beitcli.errors import StorageError
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.weight_files.file_sniffing import one_line

OnProgress = Callable[[str, int, int], None]  # what, bytes done, total bytes or 0 if unknown

_DATA = "datasets/"
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """A file on the hub.

    Attributes:
        mark: ETag: the SHA-256 of a large file, the git hash of a small one.
        size: Bytes; None if unknown.
        url: URL at the commit, so that every attempt gets the same file.
    """

    repo: str
    name: str
    commit: str
    mark: str
    size: int | None
    url: str

    @property
    def label(self) -> str:
        return f"{self.repo}/{self.name}"


def repo_type(repo: str) -> str:
    return "dataset" if repo.startswith(_DATA) else "model"


def repo_id(repo: str) -> str:
    return repo.removeprefix(_DATA)


def download(remote: Remote, revision: str, cache: Path, endpoint: str, on_progress: OnProgress | None) -> Path:
    """Downloads a file unless it is in the cache, and returns its path there.

    Args:
        revision: Branch, tag or commit; the cache records its commit.

    Raises:
        StorageError: The disk is full, the cache is not writable, the download failed, or the SHA-256 differs.
        HfHubHTTPError: The server refuses.
    """
    folder = repo_folder_name(repo_id=repo_id(remote.repo), repo_type=repo_type(remote.repo))
    blob = cache / folder / "blobs" / remote.mark
    is_kept = blob.exists()
    if not is_kept and (remote.size or 0) > _free_bytes(cache):
        raise _disk_full(remote, cache)
    done = 0

    def count(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        if on_progress is not None and num_bytes:
            on_progress(remote.label, done, remote.size or 0)

    try:
        path = hf_hub_download(
            repo_id(remote.repo),
            remote.name,
            repo_type=repo_type(remote.repo),
            revision=revision,
            cache_dir=cache,
            endpoint=endpoint,
            tqdm_class=_progress_bar(count),
        )
    except HfHubHTTPError:
        raise
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        raise _transfer_error(remote, cache, done, error) from None
    if not is_kept:
        _verify(remote, Path(path), blob)
    return Path(path)


def _progress_bar(count: Callable[[int], None]) -> type[tqdm]:
    """Returns a tqdm class that draws nothing and reports the number of new bytes to `count`."""

    class Bar(tqdm):
        monitor_interval = 0  # disables tqdm's monitor thread

        def __init__(self, *_: Any, **__: Any) -> None:
            super().__init__(disable=True)

        def update(self, n: float | None = 1) -> None:
            count(int(n or 0))

        def update_transfer(self, n: float) -> None:
            """Ignores Xet's network bytes, which are not bytes of the file."""

        def set_transfer_postfix_str(self, *_: Any, **__: Any) -> None: ...

    return Bar


def _transfer_error(remote: Remote, cache: Path, done: int, error: Exception) -> StorageError:
    number = error.errno if isinstance(error, OSError) else None
    if number in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(remote, cache)
    if isinstance(error, OSError) and number is not None:
        return StorageError(
            f"'{remote.label}' cannot be kept in '{cache}': {error.strerror or error}.",
            "Give a writable folder in BEIT_CACHE_DIR.",
        )
    cause = one_line(str(error.__cause__ or error)) or type(error).__name__
    return StorageError(
        f"'{remote.label}' was cut off at {done:,} of {remote.size or 0:,} bytes: {cause}.",
        "Check the network and run again; HF_HUB_DISABLE_XET=1 downloads without Xet.",
    )


def _verify(remote: Remote, path: Path, blob: Path) -> None:
    """Checks the SHA-256; removes the file and raises StorageError if it differs."""
    if not _SHA256.fullmatch(remote.mark):
        return
    found = sha256_of(path)
    if found != remote.mark:
        for each in (path.resolve(), blob, path):  # Xet's blob may be a link into a shared store
            each.unlink(missing_ok=True)
        raise StorageError(
            f"'{remote.label}' came in damaged: its SHA-256 is {found[:12]}…, the hub announces {remote.mark[:12]}….",
            "It is removed; run again. Where it recurs, a proxy or mirror on the way changes the file.",
        )


def _disk_full(remote: Remote, cache: Path) -> StorageError:
    needed = "its" if remote.size is None else f"{remote.size:,}"
    return StorageError(
        f"'{remote.label}' needs {needed} bytes, and the disk of '{cache}' has {_free_bytes(cache):,} free.",
        "Free space, or give a folder on another disk in BEIT_CACHE_DIR.",
    )


def _free_bytes(path: Path) -> int:
    """Returns the free bytes on the disk of `path`, which may not exist yet."""
    return shutil.disk_usage(next(folder for folder in (path, *path.parents) if folder.exists())).free
