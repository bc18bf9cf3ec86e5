"""The cache folder of this program (stdlib only)."""

from __future__ import annotations

import os
from pathlib import Path


def cache_folder() -> Path:
    """Returns the cache folder of this program: BEIT_CACHE_DIR, else XDG_CACHE_HOME/beit."""
    if os.environ.get("BEIT_CACHE_DIR"):
        return Path(os.environ["BEIT_CACHE_DIR"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "beit"
