"""`--kind strided-dvae`: BEiT's own discrete VAE (arXiv 2106.08254, Table 8; the release's `DiscreteVAE`).

The objective is that of `--kind dvae`, its reconstruction loss the squared error of pixels normalized by 0.5 / 0.5.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from beitcli.config.fields import option
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.errors import UsageError
from beitcli.tokenizers.dvae_loss import kl_to_uniform, usage_kl
from beitcli.tokenizers.kind import TokenizerKind, own_settings
from beitcli.tokenizers.kinds.dvae import DVAEObjective
from beitcli.tokenizers.strided_dvae import StridedDVAE, StridedDVAEArchitecture, normalize


@dataclass(frozen=True, kw_only=True)
class StridedDVAESettings:
    """Settings of the kind, given by `--set`."""

    code_width: int = option(512, "Width of a code.", ge=1)


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    if config.reconstruction != "mse":
        raise UsageError(
            f"--reconstruction {config.reconstruction} does not go with --kind strided-dvae: it draws pixels.",
            "Leave it out, or give --kind dvae.",
        )
    return asdict(
        StridedDVAEArchitecture(
            vocab_size=config.vocab_size,
            code_width=own_settings(config).code_width,
            width=config.width,
            groups=config.groups,
            blocks_per_group=config.blocks_per_group,
        )
    )


def _build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> StridedDVAE:
    shape = StridedDVAEArchitecture(**architecture)
    if stored is not None and shape.groups * (1 + shape.blocks_per_group) > len(stored):  # before blocks are built
        raise ValueError(f"{shape.groups} groups of {shape.blocks_per_group} blocks")
    return StridedDVAE(shape)


class StridedDVAEObjective(DVAEObjective):
    """Squared error of normalized pixels and the KL terms, on the schedules of `DVAEObjective`."""

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.model.preprocess(images)
        logits, decoded = forward(pixels, self.temperature, seeds)
        logits = logits.float()
        parts = {
            "reconstruction": F.mse_loss(decoded, normalize(pixels)),
            "kl": kl_to_uniform(logits).mean(),
            "usage_kl": usage_kl(logits, self.world.all_reduce_weighted_mean),
        }
        loss = parts["reconstruction"] + self.kl_weight * parts["kl"] + self.config.usage_weight * parts["usage_kl"]
        return loss, {name: part.detach() for name, part in parts.items()}


KIND = TokenizerKind(
    "discrete VAE of strided convolutions", _architecture, _build, StridedDVAEObjective, settings=StridedDVAESettings
)
