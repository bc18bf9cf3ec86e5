"""`--log-to tensorboard`: scalars named as in metrics.jsonl, in event files below RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beitcli.config.common import Training
from beitcli.errors import UsageError
from beitcli.runtime.storage.run_dir import RunFolder


class TensorBoardWriter:
    """Writes one event file per process; `purge_step` hides what was written after the step that a run resumes from.

    Raises:
        UsageError: The package `tensorboard` is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise UsageError(
                "--log-to tensorboard needs the package tensorboard, which is not installed.",
                "Install it: pip install 'beit-cli[tensorboard]', or leave tensorboard out.",
            ) from None
        self._make: Any = SummaryWriter
        self.writer: Any = None

    def start(self, run: RunFolder, config: Training) -> None:
        self.folder = run.path / "tensorboard"

    def rewind(self, step: int) -> None:
        self.first_hidden = step + 1

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        if self.writer is None:  # only now: a finished run must leave no empty file
            self.writer = self._make(str(self.folder), purge_step=self.first_hidden)
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # else a killed process loses two minutes that its checkpoint has

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


WRITER = TensorBoardWriter
