"""`--kind fsq`: finite scalar quantization (Mentzer et al., arXiv 2309.15505).

    loss = reconstruction(decoder(round(bounded(encoder(images)))), images)

The codes are the points of a fixed grid, such as 8 x 5 x 5 x 5 for 1,000: no codebook is learned, and none collapses.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.tokenizers.dvae_loss import reconstruction_loss
from beitcli.tokenizers.kind import Objective, TokenizerKind
from beitcli.tokenizers.quantized import QuantizedVAE, architecture_of, build
from beitcli.tokenizers.vector_quantizer import FiniteScalarQuantizer, levels_of


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    return architecture_of(config, len(levels_of(config.vocab_size)))


def _build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> QuantizedVAE:
    return build(architecture, stored, lambda shape: FiniteScalarQuantizer(levels_of(shape.vocab_size)))


_DECAY = 0.99


class FSQObjective(Objective):
    """Reconstruction alone; mean and deviation of the vectors, over the whole batch, follow the optimizer."""

    model: QuantizedVAE
    sums: Tensor | None = None

    def before_step(self, step: int, images: Tensor, places: Tensor) -> None:
        if step == 0:
            with torch.no_grad():
                for part in images.split(64):
                    self._note(self.model.vectors(self.model.preprocess(part)))
            self._update(0.0)

    def _note(self, vectors: Tensor) -> None:
        """Adds (b, h, w, d) vectors to (2 d + 1,) sums: of them, of their squares, and their number."""
        flat = vectors.detach().float().flatten(0, 2)
        sums = torch.cat((flat.sum(dim=0), flat.square().sum(dim=0), flat.new_full((1,), len(flat))))
        self.sums = sums if self.sums is None else self.sums + sums

    def _update(self, decay: float) -> None:
        if self.sums is None:
            return
        sums, self.sums = self.world.all_reduce_sum(self.sums), None
        quantizer, width = self.model.quantizer, (len(sums) - 1) // 2
        assert isinstance(quantizer, FiniteScalarQuantizer)
        quantizer.update(sums[:width], sums[width:-1], sums[-1], decay)

    def after_step(self, step: int) -> None:
        self._update(_DECAY)

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.model.preprocess(images)
        vectors, _, decoded, _ = forward(pixels)
        if not self.is_trial:
            self._note(vectors)
        loss = reconstruction_loss(pixels, decoded, self.config.reconstruction)
        return loss, {"reconstruction": loss.detach()}


KIND = TokenizerKind("finite scalar quantizer", _architecture, _build, FSQObjective)
