"""Masked image modeling as a task of the training loop (paper section 2.3).

visual_tokens = tokenizer.encode(token_images)          (B, N) int64 in [0, V)
logits = model(images, mask)                            (M, V), hidden patches only
loss = cross_entropy(logits, visual_tokens[mask])
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from beitcli.config.training import PretrainConfig
from beitcli.data.loader import ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.views import IMAGENET_MEAN, IMAGENET_STD, PretrainingView, normalize
from beitcli.engine.training import Plan, Task, Tensors
from beitcli.masking import MaskGenerator, keyed_mask
from beitcli.models.beit import MaskedImageModel
from beitcli.runtime.device import Compute, choose_workers
from beitcli.runtime.optim import make_adamw, parameter_groups
from beitcli.runtime.schedules import warmup_cosine
from beitcli.tokenizers import Tokenizer


class PretrainTask(Task):
    """Masked image modeling in the training loop."""

    name, kind = "pretrain", "masked-image-model"
    model: MaskedImageModel

    def __init__(
        self,
        config: PretrainConfig,
        plan: Plan,
        tokenizer: Tokenizer,
        masking: MaskGenerator,
        held_out: Source,
        compute: Compute,
    ) -> None:
        self.config, self.plan, self.compute = config, plan, compute
        self.tokenizer, self.masking, self.held_out = tokenizer, masking, held_out
        torch.manual_seed(config.seed)
        self.model = MaskedImageModel(config.architecture, tokenizer.vocab_size, config.drop_path).to(compute.device)
        self.forward = torch.compile(self.model) if config.compile else self.model
        groups = parameter_groups(self.model, config.weight_decay)
        self.optimizer = make_adamw(groups, config.lr, (0.9, config.beta2), compute.device)
        self.token_counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=compute.device)

    def learning_rate(self, step: int) -> float:
        return warmup_cosine(self.config.lr, self.config.min_lr, step, self.plan.steps, self.plan.warmup_steps)

    def logits_and_targets(self, batch: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        """(M, V) logits and (M,) visual tokens of the patches to predict."""
        with torch.autocast(self.compute.device.type, enabled=False):  # tokens change under low precision
            visual_tokens = self.tokenizer.encode(batch["token_images"])
        images = normalize(batch["images"], IMAGENET_MEAN, IMAGENET_STD)
        mask = batch["mask"] if self.config.mask else None
        if self.config.predict == "all":
            predicted = None if mask is None else torch.arange(visual_tokens.numel(), device=images.device)
        else:
            hidden = len(images) * self.masking.num_masked
            predicted = torch.nonzero_static(batch["mask"].flatten(), size=hidden).squeeze(1)
        logits = self.forward(images, mask, predicted)
        targets = visual_tokens.flatten()
        return logits, targets if predicted is None else targets.index_select(0, predicted)

    def loss(self, batch: Tensors) -> tuple[torch.Tensor, Tensors]:
        logits, targets = self.logits_and_targets(batch)
        loss = F.cross_entropy(logits.float(), targets)
        with torch.no_grad():
            self.token_counts.scatter_add_(0, targets, torch.ones_like(targets))
            accuracy = (logits.argmax(dim=1) == targets).float().mean()
        return loss, {"masked_accuracy": accuracy}

    def figures(self) -> dict[str, float]:
        """What knowing only the frequencies of this data's tokens would give, so far."""
        baseline, entropy = unigram_figures(self.token_counts)
        return {"baseline_accuracy": baseline, "unigram_entropy": entropy}

    @torch.no_grad()
    def measure(self) -> dict[str, float]:
        """Loss and accuracy on held-out images, their views and masks those of epoch 0."""
        counts = torch.zeros_like(self.token_counts)
        total, right, patches = 0.0, 0, 0
        view, masking = views_and_masks(self.config, self.tokenizer, self.masking)
        batches = ordered_batches(
            self.held_out,
            view,
            batch_size=min(128, self.plan.micro_batch),
            workers=choose_workers(self.config.workers, self.compute.device),
            masking=masking,
        )
        for batch in batches:
            if not len(batch):
                continue
            with self.compute.autocast():
                logits, targets = self.logits_and_targets(batch.to(self.compute.device))
            total += float(F.cross_entropy(logits.float(), targets, reduction="sum"))
            right += int((logits.argmax(dim=1) == targets).sum())
            patches += len(targets)
            counts += torch.bincount(targets, minlength=len(counts))
        baseline, entropy = unigram_figures(counts)
        return {
            "loss": total / patches,
            "masked_accuracy": right / patches,
            "baseline_accuracy": baseline,
            "unigram_entropy": entropy,
        }

    def settings(self) -> dict[str, Any]:
        return {
            "architecture": self.model.architecture.as_dict(),
            "outputs": self.tokenizer.vocab_size,
            "mean": IMAGENET_MEAN,
            "std": IMAGENET_STD,
            "tokenizer": {
                "reference": "own" if self.config.tokenizer == "own" else str(Path(self.tokenizer.reference).resolve()),
                "sha256": self.tokenizer.sha256,
            },
            "token_size": token_size(self.config, self.tokenizer),
            "masking": {
                "name": self.config.masking,
                "num_masked": self.masking.num_masked,
                "min_block": self.config.min_block,
                "seed": self.config.seed,
            },
        }

    def extra_tensors(self) -> Tensors:
        return {"token_counts": self.token_counts}

    def load_extra_tensors(self, tensors: Tensors) -> None:
        self.token_counts.copy_(tensors["token_counts"])


def unigram_figures(counts: torch.Tensor) -> tuple[float, float]:
    """(share of the commonest token, entropy in nats) of (V,) counts."""
    probabilities = counts.cpu().double() / counts.sum().clamp(min=1).cpu()
    return float(probabilities.max()), float(-torch.special.xlogy(probabilities, probabilities).sum())


def token_size(config: PretrainConfig, tokenizer: Tokenizer) -> int:
    """Side of the tokenizer's image, so that every patch has one token."""
    return config.architecture.grid[0] * tokenizer.model.downsample


def views_and_masks(
    config: PretrainConfig, tokenizer: Tokenizer, masking: MaskGenerator
) -> tuple[PretrainingView, partial[Any]]:
    """The keyed view and the keyed mask of an image."""
    view = PretrainingView(
        seed=config.seed,
        image_size=config.image_size,
        token_size=token_size(config, tokenizer),
        color_jitter=config.color_jitter,
        min_crop=config.min_crop,
    )
    return view, partial(keyed_mask, masking, config.seed)
