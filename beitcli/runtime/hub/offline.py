"""Whether the hub may be asked. Imports no client of it: opening what lies on this machine needs none."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

_ON = {"1", "ON", "YES", "TRUE"}
_cache_only = ContextVar("cache_only", default="")  # how the user can ask for a download; empty: they have


@contextmanager
def cache_only(hint: str) -> Iterator[None]:
    """Context in which nothing is asked of the hub: for references that a file names, and not the user.

    Args:
        hint: How the user can ask for the download; for the error where the cache has not got it.
    """
    before = _cache_only.set(hint)
    try:
        yield
    finally:
        _cache_only.reset(before)


def is_offline() -> bool:
    """Whether offline mode is set now; huggingface_hub only reads the variables at import."""
    return bool(_cache_only.get()) or any(
        os.environ.get(name, "").upper() in _ON for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    )


def way_to_download() -> str:
    """Returns the hint of the `cache_only` around this call; empty if there is none."""
    return _cache_only.get()
