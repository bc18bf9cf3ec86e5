"""The plan of a training: steps, batches, schedule."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How long and in which portions.

    Attributes:
        images: Of one epoch.
        micro_batch: Images of one forward pass.
        finds_micro_batch: Whether that may be tried out on the device.
    """

    seed: int
    images: int
    steps: int
    batch_size: int
    micro_batch: int
    warmup_steps: int
    clip: float | None
    save_every: int
    log_every: int
    keep: int
    max_bad: float
    data_fingerprint: str
    finds_micro_batch: bool = False

    def epoch(self, step: int) -> float:
        return step * self.batch_size / self.images
