"""`beit finetune --task brightness`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from brightness.network import Photometer

from beitcli.config.finetune import FinetuneConfig
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.events import OnEvent
from beitcli.engine.trainer.data import hold_out, open_images
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.engine.trainer.finetuning import FinetuneData, FinetunedTask, open_finetuning, run_finetuning
from beitcli.engine.trainer.model_card import FinetunedCard
from beitcli.engine.trainer.pretrained import POOLING, HeadTransfer, build_finetuned
from beitcli.engine.trainer.reports import Finetuned, Timed
from beitcli.engine.trainer.setup import make_plan
from beitcli.engine.trainer.task import Tensors, never_stop
from beitcli.runtime.compute.device import join_compute


@dataclass(frozen=True)
class Error:
    mean_error: float


@dataclass(frozen=True)
class BrightnessReport(Timed, Error, Finetuned):
    pass


def brightness(images: torch.Tensor) -> torch.Tensor:
    """(B, 3, H, W) uint8 to (B,) in [0, 1]."""
    return images.float().mean(dim=(1, 2, 3)) / 255


@torch.no_grad()
def mean_error(model: Photometer, source: Any, normalization: Any, batching: Batching) -> tuple[float, int]:
    errors = []
    for batch in batching.batches(source, evaluation_view(model.architecture.image_size)):
        images = batch.tensors["images"]
        errors += (model(normalize(images, *normalization)) - brightness(images)).abs().tolist()
    return sum(errors) / len(errors), len(errors)


class BrightnessTask(FinetunedTask):
    kind = "photometer"

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        targets = brightness(batch["images"])
        return (self.forward(normalize(batch["images"], *self.normalization)) - targets).square().mean(), {}

    def evaluate(self, check_stop: Callable[[], None] = never_stop) -> dict[str, float]:
        error, images = mean_error(self.measured, self.val, self.normalization, self.batching(16, check_stop))
        return {"mean_error": error, "images": images}

    def own_config(self) -> dict[str, Any]:
        return {"head": "linear"}

    def about(self) -> dict[str, str]:
        return self.about_head(self.model.gauge, "over the mean of the patches")


def finetune(config: FinetuneConfig, on_event: OnEvent) -> BrightnessReport | dict[str, Any]:
    begun = open_finetuning(config, join_compute(config), on_event)
    init = begun.init
    source = open_images(config, labelled=False, size=max(init.size), on_event=begun.on_event)
    held = hold_out(source, 64, config.seed)
    data = FinetuneData(held.training, held.measured, (), held.bad, held.name)
    transfer = HeadTransfer((*POOLING, "gauge."))
    model = build_finetuned(config, init.checkpoint, Photometer, lambda checkpoint: transfer, begun.on_event)
    plan = make_plan(config, data.training)
    task = BrightnessTask(config, plan, model, (), data.measured, begun.compute, init.normalization)
    card = FinetunedCard(title="Photometer", facts={}, metrics={})
    return run_finetuning(begun, data, evaluation_view(init.size), task, BrightnessReport, lambda report: card)
