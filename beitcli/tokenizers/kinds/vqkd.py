"""`--kind vqkd`: a codebook learned from a teacher's features (VQ-KD of BEiT v2, arXiv 2208.06366, section 2.2).

    loss = 1 - mean over patches of cosine(decoder(z_q), teacher(images)) + commitment * |z - stop_gradient(e_k)|^2

with z and e on the unit sphere. The codebook starts as the k-means of the first batch and follows by moving averages; a
code that was not used for `replace_after` steps becomes a vector of the batch (the release has no such step: 0).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from beitcli.config.fields import option
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.errors import UsageError
from beitcli.tokenizers.codebook_objective import CodebookObjective
from beitcli.tokenizers.kind import Teacher, TokenizerKind, own_settings
from beitcli.tokenizers.vqkd import VQKD, build


@dataclass(frozen=True, kw_only=True)
class VQKDSettings:
    """Settings of the kind, given by `--set`."""

    patch_size: int = option(8, "Side of a patch, so of a token, in pixels.", ge=1)
    width: int = option(192, "Width of encoder and decoder.", ge=1)
    depth: int = option(4, "Blocks of the encoder.", ge=1)
    heads: int = option(3, "Attention heads of a block.", ge=1)
    decoder_depth: int = option(1, "Blocks of the decoder.", ge=1)
    code_width: int = option(32, "Width of a code.", ge=1)
    commitment: float = option(1.0, "Weight of the commitment loss.", ge=0)
    decay: float = option(0.99, "Decay of the moving averages of the codebook.", ge=0, lt=1)
    replace_after: int = option(20, "Steps without use after which a code is replaced; 0 = never.", ge=0)


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    """Without `target_width`, which is the teacher's."""
    own: VQKDSettings = own_settings(config)
    if own.width % own.heads:
        raise UsageError(
            f"--set width={own.width} is not divided by {own.heads} heads.", "Give a width that is a multiple of heads."
        )
    return {
        "vocab_size": config.vocab_size,
        "code_width": own.code_width,
        "grid": max(1, config.size // own.patch_size),
        "patch_size": own.patch_size,
        "width": own.width,
        "depth": own.depth,
        "heads": own.heads,
        "decoder_depth": own.decoder_depth,
    }


class VQKDObjective(CodebookObjective):
    """Cosine distance to the teacher's features, and commitment."""

    model: VQKD
    own: VQKDSettings
    teacher: Teacher

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        targets = self.teacher.features(images)
        vectors, codes, predicted, distance = forward(self.model.preprocess(images))
        self.note(vectors, codes)
        cosine = _cosine(predicted, targets).mean()
        loss = 1 - cosine + self.own.commitment * distance
        return loss, {"cosine": cosine.detach(), "commitment": distance.detach()}

    @torch.no_grad()
    def held_out_metrics(self, images: Tensor, tokens: Tensor) -> dict[str, Tensor]:
        """Returns the mean cosine similarity of an image's patches to the teacher's, -1 to 1."""
        side = self.model.downsample
        codes = tokens.unflatten(1, (images.shape[2] // side, images.shape[3] // side))
        predicted = self.model.features_of(self.model.quantizer.lookup(codes))
        return {"cosine": _cosine(predicted, self.teacher.features(images)).mean(dim=1)}


def _cosine(predicted: Tensor, targets: Tensor) -> Tensor:
    """(B, N, T) twice to (B, N), in fp32."""
    return F.cosine_similarity(predicted.float(), targets.float(), dim=-1)


KIND = TokenizerKind("VQ-KD", _architecture, build, VQKDObjective, settings=VQKDSettings, has_teacher=True)
