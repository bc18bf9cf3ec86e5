"""The plan of a training: steps, batch sizes, schedule."""

from __future__ import annotations

from dataclasses import dataclass

MOST_MICRO_BATCH = 128  # images, where --micro-batch is not given


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Number of steps, batch sizes and intervals of a training.

    Attributes:
        images: Images per epoch.
        measure_share: Share of the training that measuring may cost before the last save.
        micro_batch: Images per forward pass.
        finds_micro_batch: Whether it may be changed to what fits on the device.
        has_splits: Whether the data is one split of several.
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
    has_splits: bool = False
    measure_share: float = 1.0

    def epoch(self, step: int) -> float:
        return step * self.batch_size / self.images
