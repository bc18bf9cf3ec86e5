"""A task whose checkpoint may hold an exponential moving average (EMA) of its weights (`--ema`), for finetuning."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from beitcli.engine.trainer.task import Task, Tensors


class EMATask(Task):
    """Evaluates and saves the EMA if there is one; training continues with the raw weights.

    Attributes:
        averaged: Model with the averaged weights; None without `--ema`.
    """

    averaged: Any = None
    decay: float = 0.0

    def init_ema(self, decay: float) -> None:
        """Starts the EMA from the current weights; 0 disables it."""
        self.decay = decay
        self.averaged = deepcopy(self.model).requires_grad_(False).eval() if decay else None

    def after_step(self, step: int) -> None:
        if self.averaged is not None:
            decay = min(self.decay, (1 + step) / (10 + step))
            kept = self.model.state_dict().keys()
            with torch.no_grad():
                torch._foreach_lerp_(list(self.averaged.parameters()), list(self.model.parameters()), 1 - decay)
                for (name, mine), its in zip(self.averaged.named_buffers(), self.model.buffers(), strict=True):
                    if name in kept:  # batch norm's; index tables do not change
                        mine.copy_(its)

    def weights(self) -> Tensors:
        return dict((self.model if self.averaged is None else self.averaged).state_dict())

    def extra_tensors(self) -> Tensors:
        """Returns the raw weights, if the checkpoint's weights are their average."""
        return {f"raw/{k}": v for k, v in self.model.state_dict().items()} if self.averaged is not None else {}

    def load_extra_tensors(self, tensors: Tensors) -> None:
        if self.averaged is not None:
            self.averaged.load_state_dict(self.model.state_dict())
            self.model.load_state_dict({name.removeprefix("raw/"): tensor for name, tensor in tensors.items()})
