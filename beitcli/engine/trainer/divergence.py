"""Detects divergence: too many consecutive steps with a non-finite gradient, or non-finite metrics."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from beitcli.data.loading.batches import Batch
from beitcli.engine.trainer.checkpointing import Saver
from beitcli.errors import DivergedError

_SKIPPED_IN_A_ROW = 5  # consecutive steps with a non-finite gradient that make a run diverged
_SKIPPED_FINDING_SCALE = 20  # additional ones with fp16, whose loss scale starts too large by design
_HINT = "Start a new run with a lower --lr, more --warmup-steps, or --precision fp32."


class DivergenceCheck:
    """Raises DivergedError on all ranks alike, after a pending checkpoint is on disk.

    Attributes:
        streak: Number of consecutive skipped steps; a scalar on the device, so reading it waits for the device.
    """

    def __init__(self, saver: Saver) -> None:
        self.saver, self.compute = saver, saver.compute
        self.streak = torch.zeros((), device=self.compute.device)

    def count(self, skipped: torch.Tensor) -> None:
        """Counts a step; `skipped` is a bool scalar on the device."""
        self.streak = torch.where(skipped, self.streak + 1, torch.zeros_like(self.streak))

    def require_progress(self, step: int, batch: Batch, path_of: Callable[[int], str]) -> None:
        """Raises if too many consecutive steps were skipped; the last of them was on `batch`."""
        most = _SKIPPED_IN_A_ROW + (_SKIPPED_FINDING_SCALE if self.saver.scaler.is_enabled() else 0)
        streak = int(self.streak)
        if streak < most:
            return
        names = [path_of(index) for index in batch.indices]
        self.saver.wait_on_all_ranks()
        everyone = self.compute.world.gather(names)
        some = "; ".join(
            (f"rank {rank}: " if len(everyone) > 1 else "") + ", ".join(mine[:3]) for rank, mine in enumerate(everyone)
        )
        raise DivergedError(
            f"Training diverged: loss or gradient were not finite in {streak} steps in a row, the last of them step "
            f"{step} ({some}, ...). {self._last_good()}",
            _HINT,
        )

    def require_finite(self, metrics: dict[str, float], step: int) -> None:
        """Raises if loss or gradient norm are not finite, or any metric is NaN."""
        must = ("loss", "gradient_norm")
        wrong = [name for name, value in metrics.items() if not math.isfinite(value) and name.endswith(must)]
        wrong = wrong or [name for name, value in metrics.items() if math.isnan(value)]
        if wrong:
            self.saver.wait_on_all_ranks()
            raise DivergedError(
                f"Training diverged: {' and '.join(wrong)} not finite by step {step}. {self._last_good()}", _HINT
            )

    def _last_good(self) -> str:
        saved = self.saver.last_saved
        return f"The checkpoint of step {saved} is from before." if saved else "No checkpoint was saved yet."
