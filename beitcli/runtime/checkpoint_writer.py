"""Checkpoints written beside the training: the loop waits for a copy of the tensors, not for the disk."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch


def snapshot(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Copies in the CPU's memory, which training does not change any more."""
    copies = {}
    for name, tensor in tensors.items():
        detached = tensor.detach()
        copies[name] = detached.clone() if detached.device.type == "cpu" else detached.cpu()
    return copies


@dataclass(frozen=True)
class Written:
    """A checkpoint that is on disk.

    Attributes:
        seconds: That its writing took, beside the training.
    """

    path: Path
    step: int
    seconds: float


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread of its own."""

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._written: Written | None = None
        self._error: BaseException | None = None

    def submit(self, write: Callable[[], Path], step: int) -> None:
        """Begins to write; the one before must have been waited for."""

        def work() -> None:
            begun = time.perf_counter()
            try:
                self._written = Written(write(), step, time.perf_counter() - begun)
            except BaseException as error:  # raised where it is asked for
                self._error = error

        self._thread = threading.Thread(target=work, name=f"checkpoint of step {step}")
        self._thread.start()

    def finished(self) -> Written | None:
        """What has been written since the last time it was asked for. Raises StorageError where that failed."""
        if self._thread is None or self._thread.is_alive():
            return None
        return self.wait()

    def wait(self) -> Written | None:
        """As `finished`, once nothing is being written any more."""
        if self._thread is not None:
            self._thread.join()
        self._thread, written, error = None, self._written, self._error
        self._written = self._error = None
        if error is not None:
            raise error
        return written
