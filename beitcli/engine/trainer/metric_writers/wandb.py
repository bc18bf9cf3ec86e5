"""`--log-to wandb`: Weights & Biases, offline in RUN/wandb; with WANDB_MODE=online in its service."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from beitcli.config.common import Training
from beitcli.config.toml_text import plain_settings
from beitcli.errors import UsageError
from beitcli.runtime.extras import install_line
from beitcli.runtime.storage.own_files import atomic_write_text
from beitcli.runtime.storage.regular_files import read_regular
from beitcli.runtime.storage.run_dir import RunFolder


class WandbWriter:
    """Writes scalars named as in metrics.jsonl, pictures, and the settings of the run.

    Nothing leaves the machine unless WANDB_MODE says so; `wandb sync RUN/wandb/offline-run-*` sends it later. A run
    that is resumed goes on under the same ID; of a step that is written again, W&B keeps the first.

    Raises:
        UsageError: The package `wandb` is not installed.
    """

    def __init__(self) -> None:
        if os.environ.get("WANDB_MODE", "offline") != "online":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            import wandb
        except ImportError:
            raise UsageError(
                "--log-to wandb needs the package wandb, which is not installed.",
                f"Install it: {install_line('wandb')}, or leave wandb out.",
            ) from None
        self._wandb: Any = wandb
        self.run: Any = None

    def start(self, run: RunFolder, config: Training) -> None:
        self.folder, self.config = run.path, config

    def rewind(self, step: int) -> None: ...

    def _begin(self) -> Any:
        """Begins only with the first metrics: a finished run must leave no empty one."""
        if self.run is None:
            path = self.folder.resolve()
            self.run = self._wandb.init(
                project=os.environ.get("WANDB_PROJECT", "beit"),
                name=path.name,
                id=_own_id(path / "wandb"),
                resume="allow",
                dir=str(self.folder),
                config=plain_settings(self.config),
                mode=os.environ.get("WANDB_MODE", "offline"),
                settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True, x_disable_meta=True),
            )
        return self.run

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._begin().log(dict(metrics), step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        """Writes a picture, with the caption that W&B shows."""
        self._begin().log({name: self._wandb.Image(str(file), caption=f"step {step}")}, step=step)

    def close(self) -> None:
        if self.run is not None:
            self.run.finish()


def _own_id(folder: Path) -> str:
    """Returns the ID of the run whose folder this is: drawn once, so that a new run in its place is another."""
    folder.mkdir(exist_ok=True)
    file = folder / "run-id"
    try:
        return read_regular(file).decode().strip()
    except (OSError, ValueError):
        drawn = secrets.token_hex(8)
        atomic_write_text(file, drawn + "\n")
        return drawn


WRITER = WandbWriter
