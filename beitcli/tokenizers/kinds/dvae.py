"""`--kind dvae`: DALL-E's discrete VAE (arXiv 2102.12092, section 2.1).

    logits = encoder(images)                          (B, V, h, w)
    codes = gumbel_softmax(logits, temperature)       relaxed one-hot; cosine schedule of the temperature
    loss = reconstruction(decoder(codes), images) + kl_weight * KL(q || uniform) + usage_weight * KL(mean q || uniform)

with q = softmax(logits) of a patch; mean q is its mean over the batch. The last term keeps all codes in use: without
it, a short run used 56 of 256 (docs/results.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from typing import Any

from torch import Tensor

from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.runtime.compute.lr_schedules import cosine
from beitcli.tokenizers.dvae import DiscreteVAE
from beitcli.tokenizers.dvae_loss import dvae_loss
from beitcli.tokenizers.dvae_network import DVAEArchitecture
from beitcli.tokenizers.kind import Objective, TokenizerKind


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    return asdict(
        DVAEArchitecture(
            vocab_size=config.vocab_size,
            width=config.width,
            groups=config.groups,
            blocks_per_group=config.blocks_per_group,
            init_gain=math.sqrt(2),
            output_channels=6 if config.reconstruction == "logit-laplace" else 3,
        )
    )


def _build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> DiscreteVAE:
    shape = DVAEArchitecture(**architecture)
    if stored is not None and shape.groups * shape.blocks_per_group > len(stored):  # before blocks are built
        raise ValueError(f"{shape.groups} groups of {shape.blocks_per_group} blocks")
    return DiscreteVAE(shape)


class DVAEObjective(Objective):
    """Reconstruction and KL terms; the temperature falls from 1, the KL weight rises from 0, on cosine schedules."""

    purpose = "gumbel"
    temperature, kl_weight = 1.0, 0.0

    def before_step(self, step: int, images: Tensor, places: Tensor) -> None:
        self.temperature = cosine(1.0, self.config.temperature_end, step, self.steps * 4 // 5)
        self.kl_weight = cosine(0.0, self.config.kl_weight, step, self.steps * 3 // 10)

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        loss, parts = dvae_loss(
            forward,
            self.model.preprocess(images),
            self.temperature,
            self.kl_weight,
            self.config.reconstruction,
            self.config.usage_weight,
            noise=seeds,
            mean_over=self.world.all_reduce_weighted_mean,
        )
        return loss, {name: value for name, value in parts.items() if name != "loss"}

    def log_metrics(self) -> dict[str, float]:
        return {"temperature": self.temperature, "kl_weight": self.kl_weight}


KIND = TokenizerKind("discrete VAE", _architecture, _build, DVAEObjective)
