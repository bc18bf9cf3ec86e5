"""Which code a cell ran: the commit of this checkout, and whether files of the code differ from it."""

from __future__ import annotations

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CODE = ("beitcli", "benchmarks/paper.py", "benchmarks/paper_tables")


def code_version(root: Path = ROOT) -> dict[str, str | bool | None]:
    """Returns `commit`, None outside a git checkout, and `dirty`: a file of the code is new or differs from the commit.

    Args:
        root: The checkout.
    """
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", *CODE)
    return {"commit": commit or None, "dirty": None if commit is None else bool(changed)}


def _git(root: Path, *words: str) -> str | None:
    command = ["git", "--no-optional-locks", "-C", str(root), *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def named(code: dict[str, str | bool | None]) -> str:
    """Returns a version in words: twelve digits of the commit, and "changed" where files differ from it."""
    commit = code.get("commit")
    return "no commit" if not commit else f"{str(commit)[:12]}{' (changed)' if code.get('dirty') else ''}"
