"""What objectives with a learned codebook share: k-means start, statistics of the global batch, unused codes.

The codebook is updated from the global batch, so it depends on neither world size nor micro-batch size.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor

from beitcli.runtime.compute.keyed_rng import keyed_integer
from beitcli.tokenizers.base import TokenizerModel
from beitcli.tokenizers.kind import Objective, own_settings
from beitcli.tokenizers.vector_quantizer import VectorQuantizer

_PLACES = 64  # images of a step whose vectors replace codes: the first ones of the batch


class CodebookSettings(Protocol):
    """What the settings of such a kind have."""

    @property
    def decay(self) -> float: ...

    @property
    def replace_after(self) -> int: ...


class CodebookModel(TokenizerModel):
    """A network with a codebook."""

    quantizer: Any  # a VectorQuantizer; other kinds of the same network have other quantizers

    @torch.no_grad()
    def code_vectors(self) -> Tensor:
        device = next(self.parameters()).device
        return self.quantizer.lookup(torch.arange(self.vocab_size, device=device))

    @abstractmethod
    def vectors(self, images: Tensor) -> Tensor:
        """Output of `preprocess`, (B, 3, H, W), to the vectors that are quantized, (B, h, w, D)."""


class CodebookObjective(Objective):
    """Starts and updates the codebook; subclasses define `loss`, which passes its vectors and codes to `note`."""

    model: CodebookModel
    own: CodebookSettings

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.own = own_settings(self.config)
        self.next_look = 0  # no code can have been unused for `replace_after` steps before this one
        self.replaced = 0
        self._begin(torch.zeros(0, dtype=torch.int64))

    def _begin(self, places: Tensor) -> None:
        """Resets the accumulated statistics."""
        self.places, self.seen = places, 0
        self.count: Tensor | None = None
        self.total: Tensor | None = None
        self.candidates: list[tuple[int, Tensor]] = []  # place in the batch, (h * w, D) of its image

    @property
    def quantizer(self) -> VectorQuantizer:
        quantizer = self.model.quantizer
        assert isinstance(quantizer, VectorQuantizer)
        return quantizer

    def before_step(self, step: int, images: Tensor, places: Tensor) -> None:
        self._begin(places)
        if step == 0:
            with torch.no_grad():
                vectors = torch.cat([self.model.vectors(self.model.preprocess(part)) for part in images.split(64)])
            self.quantizer.start(self._of_all(places, vectors.flatten(1, 2)), self._generator(0))
            self.world.broadcast(self.quantizer.state_dict().values())  # on CUDA sums of k-means differ in their bits

    def _generator(self, step: int) -> torch.Generator:
        return torch.Generator().manual_seed(keyed_integer(self.config.seed, "codebook", 0, step))

    def _of_all(self, places: Tensor, vectors: Tensor) -> Tensor:
        """(n, D) on the CPU, in the order of the whole batch: (b, m, D) of this process's images, and all others'."""
        mine = list(zip(places.tolist(), vectors.detach().float().cpu(), strict=True))
        everyone = [pair for part in self.world.gather(mine) for pair in part]
        if not everyone:
            return vectors.new_zeros(0, vectors.shape[-1])
        return torch.cat([each for _, each in sorted(everyone, key=lambda pair: pair[0])])

    def note(self, vectors: Tensor, codes: Tensor) -> None:
        """Accumulates the statistics of a micro-batch, (b, h, w, D) and (b, h, w); those of a trial are left out."""
        if self.is_trial:
            return
        vectors = vectors.detach()
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
        quantizer, after = self.quantizer, self.own.replace_after
        quantizer.update(count, total, self.own.decay)
        if not after or step < self.next_look:
            return
        longest = int(quantizer.unused.max())  # alike in all processes; waits for the device
        self.next_look = step + max(1, after - longest)
        if longest >= after and bool(torch.isfinite(total).all()):
            places = torch.tensor([place for place, _ in self.candidates], dtype=torch.int64)
            vectors = [each for _, each in self.candidates]
            stacked = torch.stack(vectors) if vectors else total.new_zeros(0, 1, total.shape[1])
            self.replaced += quantizer.replace_unused(self._of_all(places, stacked), after, self._generator(step + 1))

    def log_metrics(self) -> dict[str, float]:
        """Returns the number of codes replaced since the last log line."""
        replaced, self.replaced = self.replaced, 0
        return {"codes_replaced": float(replaced)}
