"""Reads byte ranges of files on the hub with HTTP range requests.

Files are requested at a commit, so that every attempt returns the same bytes. The hub has no hashes of ranges; the
length of the range and the size of the file are checked.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence

from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError, HTTPError
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from beitcli.errors import StorageError
from beitcli.runtime.hub.download import Remote
from beitcli.runtime.weight_files.file_sniffing import one_line

PAUSES: Sequence[float] = (0.2, 1.0, 4.0, 15.0, 40.0)  # seconds before each retry after an attempt without progress
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")
_LONGEST_PAUSE = 60.0
_AGAIN = "Try again later: what was read is kept in the cache, and a run goes on with --resume."


class RangesUnsupported(StorageError):
    """The server, or a proxy, does not support range requests."""


def read_range(remote: Remote, start: int, end: int, pauses: Sequence[float] | None = None) -> bytes:
    """Reads bytes [start, end); after a broken connection, requests the missing rest.

    Args:
        pauses: Seconds before each retry; PAUSES if None.

    Raises:
        RangesUnsupported: The server does not support range requests.
        StorageError: The server refuses, the file has changed, or all retries failed.
    """
    pauses = PAUSES if pauses is None else pauses
    content, in_vain = bytearray(), 0
    while len(content) < end - start:
        before, wished = len(content), 0.0
        try:
            _append(remote, start, end, content)
            cause = "the connection was closed"
        except HfHubHTTPError as error:
            status = error.response.status_code
            if status < 500 and status not in (408, 429):
                raise _refused(remote, status) from None
            cause, wished = f"HTTP {status}", _seconds(error.response.headers.get("Retry-After", ""))
        except HTTPError as error:
            cause = one_line(str(error)) or type(error).__name__
        in_vain = 0 if len(content) > before else in_vain + 1
        if in_vain > len(pauses):
            tries = f"; {len(pauses)} further tries brought no more" if pauses else ""
            raise StorageError(
                f"'{remote.label}' was cut off at {start + len(content):,} of {remote.size:,} bytes: {cause}{tries}.",
                _AGAIN,
            )
        if in_vain:
            time.sleep(max(pauses[in_vain - 1], wished))
    return bytes(content)


def _append(remote: Remote, start: int, end: int, content: bytearray) -> None:
    """Requests the missing bytes and appends them to `content`; keeps those received before a connection broke."""
    first = start + len(content)
    headers = build_hf_headers() | {"Accept-Encoding": "identity", "Range": f"bytes={first}-{end - 1}"}
    # The session follows redirects, and does not send the token to other hosts.
    with get_session().stream(
        "GET", remote.url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    ) as response:
        hf_raise_for_status(response)
        if response.status_code != 206:
            raise RangesUnsupported(
                f"'{remote.label}' cannot be read in parts: the server sends all of it.",
                "Download the data set (hf download --repo-type dataset) and pass its folder.",
            )
        told = _CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", ""))
        if told is None or int(told[1]) != first or told[3] not in ("*", str(remote.size)):
            raise _changed(remote)
        for chunk in response.iter_bytes():
            content += chunk[: end - start - len(content)]


def _refused(remote: Remote, status: int) -> StorageError:
    if status in (404, 410, 416):
        return _changed(remote)
    way = "Set HF_TOKEN to a token that may read it." if status in (401, 403) else _AGAIN
    return StorageError(f"The hub answers HTTP {status} when asked for '{remote.label}'.", way)


def _changed(remote: Remote) -> StorageError:
    return StorageError(
        f"'{remote.label}' is no longer what it was at commit {remote.commit[:12]}: the data set was changed.",
        "Begin a new run on what it is now, or pass a copy of what it was.",
    )


def _seconds(header: str) -> float:
    """Parses a Retry-After header, at most _LONGEST_PAUSE; 0 for a date."""
    return min(float(header), _LONGEST_PAUSE) if header.isdigit() else 0.0
