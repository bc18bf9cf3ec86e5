"""`--kind vq`: a vector-quantized autoencoder (VQ-VAE, arXiv 1711.00937; its appendix A.1 for the moving averages).

    loss = reconstruction(decoder(z_q), images) + commitment * |z - stop_gradient(e_k)|^2

The codebook starts as the k-means of the first batch and follows by moving averages. A code that was not used for
`replace_after` steps becomes a vector of the batch: an unused code never learns, which is how such codebooks collapse.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from beitcli.config.fields import option
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.tokenizers.dvae_loss import reconstruction_loss
from beitcli.tokenizers.kind import Objective, TokenizerKind, own_settings
from beitcli.tokenizers.quantized import QuantizedVAE, architecture_of, build
from beitcli.tokenizers.vector_quantizer import VectorQuantizer

_PLACES = 64  # images of a step whose vectors replace codes: the first ones of the batch


@dataclass(frozen=True, kw_only=True)
class VQSettings:
    """Settings of the kind, given by `--set`."""

    code_width: int = option(16, "Width of a code.", ge=1)
    commitment: float = option(0.25, "Weight of the commitment loss.", ge=0)
    decay: float = option(0.99, "Decay of the moving averages of the codebook.", ge=0, lt=1)
    replace_after: int = option(20, "Steps without use after which a code is replaced.", ge=1)


def _architecture(config: TrainTokenizerConfig) -> dict[str, Any]:
    return architecture_of(config, own_settings(config).code_width)


def _build(architecture: Mapping[str, Any], stored: Collection[str] | None) -> QuantizedVAE:
    return build(architecture, stored, lambda shape: VectorQuantizer(shape.vocab_size, shape.code_width))


class VQObjective(Objective):
    """Reconstruction and commitment; the codebook follows the optimizer.

    The codebook is updated from the global batch, so it depends on neither world size nor micro-batch size.
    """

    model: QuantizedVAE

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.own: VQSettings = own_settings(self.config)
        self._begin(torch.zeros(0, dtype=torch.int64))

    def _begin(self, places: Tensor) -> None:
        """Resets the accumulated statistics."""
        self.places, self.seen = places, 0
        self.count: Tensor | None = None
        self.total: Tensor | None = None
        self.candidates: list[tuple[int, Tensor]] = []  # place in the batch, (h * w, D) of its image
        self.replaced = 0

    @property
    def quantizer(self) -> VectorQuantizer:
        quantizer = self.model.quantizer
        assert isinstance(quantizer, VectorQuantizer)
        return quantizer

    def before_step(self, step: int, images: Tensor, places: Tensor) -> None:
        replaced = self.replaced
        self._begin(places)
        self.replaced = replaced
        if step == 0:
            with torch.no_grad():
                vectors = torch.cat([self.model.vectors(self.model.preprocess(part)) for part in images.split(64)])
            self.quantizer.start(self._of_all(places, vectors.flatten(1, 2)), self._generator(0))

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(keyed_integer(self.config.seed, "codebook", 0, step))

    def _of_all(self, places: Tensor, vectors: Tensor) -> Tensor:
        """(n, D) on the CPU, in the order of the whole batch: (b, m, D) of this process's images, and all others'."""
        mine = list(zip(places.tolist(), vectors.detach().float().cpu(), strict=True))
        everyone = [pair for part in self.world.gather(mine) for pair in part]
        if not everyone:
            return vectors.new_zeros(0, vectors.shape[-1])
        return torch.cat([each for _, each in sorted(everyone, key=lambda pair: pair[0])])

    def loss(
        self, forward: Callable[..., Any], images: Tensor, seeds: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        pixels = self.model.preprocess(images)
        vectors, codes, decoded, distance = forward(pixels)
        if not self.is_trial:
            self._note(vectors.detach(), codes)
        reconstruction = reconstruction_loss(pixels, decoded, self.config.reconstruction)
        loss = reconstruction + self.own.commitment * distance
        return loss, {"reconstruction": reconstruction.detach(), "commitment": distance.detach()}

    def _note(self, vectors: Tensor, codes: Tensor) -> None:
        """Accumulates the statistics of a micro-batch for the update of the codebook."""
        count, total = self.quantizer.tally(vectors.flatten(0, 2), codes.flatten())
        self.count = count if self.count is None else self.count + count
        self.total = total if self.total is None else self.total + total
        here = self.places[self.seen : self.seen + len(vectors)].tolist()
        self.seen += len(vectors)
        for place, each in zip(here, vectors.flatten(1, 2), strict=False):
            if place < _PLACES:
                self.candidates.append((place, each))

    def after_step(self, step: int) -> None:
        if self.count is None or self.total is None:
            return
        count, total = self.world.all_reduce_sum(self.count), self.world.all_reduce_sum(self.total)
        if not bool(torch.isfinite(total).all()):
            return
        quantizer = self.quantizer
        quantizer.update(count, total, self.own.decay)
        if bool((quantizer.unused >= self.own.replace_after).any()):  # alike in all processes
            places = torch.tensor([place for place, _ in self.candidates], dtype=torch.int64)
            width = quantizer.codebook.shape[1]
            vectors = [each for _, each in self.candidates]
            stacked = torch.stack(vectors) if vectors else total.new_zeros(0, 1, width)
            pool = self._of_all(places, stacked)
            self.replaced += quantizer.replace_unused(pool, self.own.replace_after, self._generator(step + 1))

    def log_metrics(self) -> dict[str, float]:
        """Returns the number of codes replaced since the last log line."""
        replaced, self.replaced = self.replaced, 0
        return {"codes_replaced": float(replaced)}


KIND = TokenizerKind("vector-quantized autoencoder", _architecture, _build, VQObjective, settings=VQSettings)
