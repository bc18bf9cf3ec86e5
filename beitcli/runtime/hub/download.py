"""Downloads one file of a model hub, and takes it only as the hub announces it.

Not left to huggingface_hub, which throws away what came in before a connection broke, draws bars of its own and
compares no hash. Here a download goes on from its last byte, also in a later process.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from beitcli.errors import StorageError
from beitcli.runtime.storage.hashing import sha256_of
from beitcli.runtime.weight_files.file_sniffing import one_line

OnProgress = Callable[[str, int, int], None]  # what, bytes done, bytes in all; 0 where nobody knows

_PAUSES = (0.2, 1.0)  # seconds before each further try that follows one without progress
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Remote:
    """A file as the hub announces it.

    Attributes:
        mark: Its ETag: the SHA-256 of a large file, a git hash of a small one.
        size: Bytes; None where the server does not say.
        url: At its commit, so that it is the same file at each try.
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


def download(remote: Remote, path: Path, on_progress: OnProgress | None) -> None:
    """Fetches the body into `path`.incomplete, going on after what is there, and moves it once it is right.

    Raises:
        StorageError: The connection broke and three tries brought nothing more, the disk is too small, or the content
            is not what was announced.
        HTTPError: The server refuses.
    """
    partial = path.with_name(f"{path.name}.incomplete")
    done, idle, restarts = _size(partial), 0, 0
    if remote.size is not None and shutil.disk_usage(path.parent).free < remote.size - done:
        raise disk_full(remote, path.parent)
    while True:
        total, cause = remote.size, "the server sends another size than it announces"
        try:
            total = _append_body(remote, partial, on_progress)
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 and status not in (408, 416, 429):
                raise
            cause = f"HTTP {status}"
            if status == 416:  # what is there is longer than the file: not its beginning
                partial.unlink(missing_ok=True)
        except HTTPError as error:
            cause = one_line(str(error)) or type(error).__name__
        before, done = done, _size(partial)
        if done == total and partial.exists():
            break
        if done < before or (total is not None and done > total):
            restarts += 1
            if total is not None and done > total:
                partial.unlink()
        idle = idle + 1 if done <= before or restarts > 1 else 0
        if idle > len(_PAUSES):
            raise StorageError(
                f"'{remote.label}' was cut off at {done:,} of {total or 0:,} bytes: {cause}.",
                "Run again: the download goes on from there.",
            )
        if idle:
            time.sleep(_PAUSES[idle - 1])
    _verify(remote, partial)
    partial.replace(path)


def _append_body(remote: Remote, partial: Path, on_progress: OnProgress | None) -> int:
    """One request for what is missing. Returns the size of the whole file in bytes.

    Raises:
        HTTPError: The server refuses, or the connection broke; what came in is kept.
    """
    done = _size(partial)
    if done and done == remote.size:
        return done
    headers = build_hf_headers() | {"Accept-Encoding": "identity"}  # a range of the file itself
    if done:
        headers["Range"] = f"bytes={done}-"
    # The session follows redirects, and keeps the token from other hosts that they lead to.
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:  # the whole file, whatever was asked for
            done = 0
        length = response.headers.get("Content-Length")
        total = remote.size if remote.size is not None else done + int(length) if length else None
        with partial.open("ab" if done else "wb") as file:
            for chunk in response.iter_bytes():
                file.write(chunk)
                done += len(chunk)
                if on_progress is not None:
                    on_progress(remote.label, done, total or 0)
    return done if total is None else total


def _verify(remote: Remote, partial: Path) -> None:
    """Removes the file and raises StorageError where the hub announces another SHA-256."""
    if not _SHA256.fullmatch(remote.mark):
        return
    found = sha256_of(partial)
    if found != remote.mark:
        partial.unlink()
        raise StorageError(
            f"'{remote.label}' came in damaged: its SHA-256 is {found[:12]}…, the hub announces {remote.mark[:12]}….",
            "It is removed; run again. Where it recurs, a proxy or mirror on the way changes the file.",
        )


def disk_full(remote: Remote, folder: Path) -> StorageError:
    needed = "its" if remote.size is None else f"{remote.size:,}"
    free = shutil.disk_usage(folder).free
    return StorageError(
        f"'{remote.label}' needs {needed} bytes, and the disk of '{folder}' has {free:,} free.",
        "Free space, or give a folder on another disk in BEIT_CACHE_DIR.",
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
