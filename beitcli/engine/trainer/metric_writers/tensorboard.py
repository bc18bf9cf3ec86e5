"""`--log-to tensorboard`: metrics by their names, pictures and settings, in event files below RUN/tensorboard."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from beitcli.config.common import Training
from beitcli.config.toml_text import plain_settings
from beitcli.errors import UsageError
from beitcli.escaping import markdown
from beitcli.runtime.extras import install_line
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
                f"Install it: {install_line('tensorboard')}, or leave tensorboard out.",
            ) from None
        self._make: Any = SummaryWriter
        self.writer: Any = None

    def start(self, run: RunFolder, config: Training) -> None:
        self.folder, self.settings = run.path / "tensorboard", plain_settings(config)

    def rewind(self, step: int) -> None:
        self.first_hidden = step + 1

    def _begin(self) -> Any:
        """Begins only with the first metrics: a finished run must leave no empty file."""
        if self.writer is None:
            self.writer = self._make(str(self.folder), purge_step=self.first_hidden)
            settings = "".join(f"| {markdown(n)} | {markdown(str(v))} |\n" for n, v in self.settings.items())
            self.writer.add_text("config", f"| setting | value |\n|---|---|\n{settings}", self.first_hidden - 1)
        return self.writer

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self._begin()
        for name, value in metrics.items():
            self.writer.add_scalar(name, value, step)
        self.writer.flush()  # else a killed process loses two minutes that its checkpoint has

    def picture(self, step: int, name: str, file: Path) -> None:
        with Image.open(file) as image:
            self._begin().add_image(name, np.asarray(image.convert("RGB")), step, dataformats="HWC")

    def close(self) -> None:
        if self.writer is not None:
            self.writer.close()


WRITER = TensorBoardWriter
