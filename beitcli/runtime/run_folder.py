"""A run on disk: settings, metrics, bad images, model card; checkpoints lie in `checkpoints/`."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from beitcli.errors import StorageError, UsageError


class RunFolder:
    """`RUN/`, opened for writing."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @classmethod
    def create(cls, path: Path, *, resume: bool) -> RunFolder:
        """Makes the folder, which must be new or empty unless a run goes on in it.

        Raises:
            UsageError: Something lies there already.
            StorageError: It cannot be written.
        """
        try:
            if path.exists() and not path.is_dir():
                raise UsageError(f"--out '{path}' is a file.", "Give a folder that is new or empty.")
            occupied = path.is_dir() and any(not entry.name.startswith(".") for entry in path.iterdir())
            if occupied and not resume:
                raise UsageError(
                    f"--out '{path}' is not empty.",
                    "Give another folder, or add --resume to go on with the run in it.",
                )
            if occupied and not (path / "config.toml").exists():
                raise UsageError(
                    f"'{path}' is not empty and holds no run (no config.toml).",
                    "Give a run, or a new folder, to --out.",
                )
            path.mkdir(parents=True, exist_ok=True)
            probe = path / f".writable-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise StorageError(
                f"Run folder '{path}' cannot be written: {error.strerror or error}.", "Give a writable folder to --out."
            ) from None
        return cls(path)

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def write_text(self, name: str, text: str) -> None:
        """Replaces a small file in one rename."""
        beside = self.path / f".{name}.{os.getpid()}"
        try:
            beside.write_text(text)
            beside.replace(self.path / name)
        except OSError as error:
            beside.unlink(missing_ok=True)
            raise StorageError(f"'{self.path / name}' cannot be written: {error}.", "Free space on the disk.") from None

    def append_json(self, name: str, document: dict[str, Any]) -> None:
        """Adds a line to a JSON Lines file."""
        try:
            with (self.path / name).open("a") as file:
                file.write(json.dumps(document) + "\n")
        except OSError as error:
            raise StorageError(f"'{self.path / name}' cannot be written: {error}.", "Free space on the disk.") from None

    def rewind_metrics(self, step: int) -> None:
        """Drops the lines of metrics.jsonl past `step`: the run is about to write them again."""
        path = self.path / "metrics.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text(errors="replace").splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError, TypeError):  # a line that a killed process left unfinished
                continue
        self.write_text("metrics.jsonl", "".join(line + "\n" for line in kept))
