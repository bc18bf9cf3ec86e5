"""Hashes of files. Imports no torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

from beitcli.runtime.storage.regular_files import open_regular


def sha256_of(path: Path) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
