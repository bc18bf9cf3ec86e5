"""Quantizers: a learned codebook (VQ-VAE, arXiv 1711.00937) and a fixed grid (FSQ, arXiv 2309.15505).

    VQ:   k = argmin_j |z - e_j|^2,  z_q = z + stop_gradient(e_k - z)             (straight-through gradient)
    EMA:  n_j <- d n_j + (1 - d) count_j;  m_j <- d m_j + (1 - d) sum of z with k = j;  e_j = m_j / n_j
          on the unit sphere (VQ-KD, arXiv 2208.06366):  e_j <- norm(d e_j + (1 - d) norm(sum of z with k = j))
    loss: |stop_gradient(z) - e_k|^2 for the codebook, |z - stop_gradient(e_k)|^2 for the encoder      (equation 3)
    FSQ:  z_q = round((L / 2) erf((z - mean) / (std sqrt 2))),  a grid of L_1 x ... x L_d points

The FSQ paper bounds z by tanh. At the learning rates used here z leaves the slope of tanh within a hundred steps (32 of
1,024 codes used), so z is standardised by moving averages first; erf makes normally distributed numbers uniform.

The cost of VQ is one (tokens, D) x (D, V) product; FSQ costs nothing.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from beitcli.errors import UsageError
from beitcli.runtime.compute.device import tf32_disabled

_EPSILON = 1e-5
_KMEANS_ROUNDS = 10
_MOST_SCORES = 1 << 28  # of vectors with codes at once: 1 GiB in fp32


class VectorQuantizer(nn.Module):
    """A codebook of V vectors of width D.

    Args:
        cosine: Vectors and codes are compared on the unit sphere (BEiT v2); else by Euclidean distance.
        by_loss: The codebook is a parameter that a loss trains; else a buffer that follows by moving averages.

    Attributes:
        codebook: (V, D) e.
        counts: (V,) n, how often a code occurs in a step: a moving average. Absent on the unit sphere and `by_loss`.
        sums: (V, D) m, the sum of the vectors nearest to it: a moving average. Absent as `counts` is.
        unused: (V,) int64, steps since a code was last used.
    """

    codebook: Tensor
    counts: Tensor
    sums: Tensor
    unused: Tensor

    def __init__(self, codes: int, width: int, *, cosine: bool = False, by_loss: bool = False) -> None:
        super().__init__()
        self.cosine, self.by_loss = cosine, by_loss
        self.has_sums = not cosine and not by_loss
        codebook = self.prepared(torch.randn(codes, width))
        if by_loss:
            self.codebook = nn.Parameter(codebook)
        else:
            self.register_buffer("codebook", codebook)
        if self.has_sums:
            self.register_buffer("counts", torch.ones(codes))
            self.register_buffer("sums", self.codebook.clone())
        self.register_buffer("unused", torch.zeros(codes, dtype=torch.int64))

    @torch.no_grad()
    def nearest(self, vectors: Tensor) -> Tensor:
        """(..., D) to (...) int64, compared in fp32 whatever the precision around it: a nearest code is by a hair."""
        flat = self.prepared(vectors.flatten(0, -2).float())
        parts = flat.split(max(1, _MOST_SCORES // len(self.codebook)))
        with torch.autocast(flat.device.type, enabled=False), tf32_disabled(flat.device):
            codes = [self._scores(part).argmax(dim=1) for part in parts]
        return torch.cat(codes).view(vectors.shape[:-1])

    def _scores(self, prepared: Tensor) -> Tensor:
        """(n, D) to (n, V), the largest for the nearest code."""
        scores = prepared @ self.codebook.t()
        return scores if self.cosine else scores - 0.5 * self.codebook.square().sum(dim=1)

    def prepared(self, vectors: Tensor) -> Tensor:
        """Returns the vectors that are compared with the codes: normalized if `cosine`."""
        return F.normalize(vectors, dim=-1) if self.cosine else vectors

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) int64 to (..., D)."""
        return F.embedding(codes, self.codebook)

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns z_q (..., D), whose gradient goes to z; codes (...); the mean of |z - e|^2 with its gradient to z.

        `by_loss`, the last is (2,): that mean, and the same number with its gradient to the codebook.
        """
        prepared = self.prepared(vectors.float())
        codes = self.nearest(prepared)
        chosen = self.lookup(codes)
        straight = prepared + (chosen - prepared).detach()
        distance = F.mse_loss(prepared, chosen.detach())
        if self.by_loss:
            distance = torch.stack([distance, F.mse_loss(chosen, prepared.detach())])
        return straight, codes, distance

    @torch.no_grad()
    def start(self, vectors: Tensor, generator: torch.Generator) -> None:
        """Initializes the codebook by k-means on the first batch.

        Args:
            vectors: (n, D) of the whole batch, on the CPU. Where n < V some codes begin alike, and are replaced later.
            generator: Of the CPU.
        """
        number = len(self.codebook)
        vectors = self.prepared(vectors.float())
        rows = torch.randperm(len(vectors), generator=generator)
        chosen = vectors[rows.repeat(-(-number // len(rows)))[:number]].to(self.codebook.device)
        vectors = vectors.to(self.codebook.device)
        for _ in range(_KMEANS_ROUNDS if len(vectors) > number else 0):
            self.codebook.copy_(chosen)
            count, total = self._tally(vectors, self.nearest(vectors))
            chosen = torch.where(count[:, None] > 0, total / count.clamp(min=1)[:, None], chosen)
            chosen = self.prepared(chosen)
        self.codebook.copy_(chosen)
        if self.has_sums:
            self.counts.fill_(len(vectors) / number)
            self.sums.copy_(self.codebook * self.counts[:, None])
        self.unused.zero_()

    def _tally(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """(V,) how often each code occurs, and (V, D) the sum of its vectors."""
        count = codes.new_zeros(len(self.codebook))
        count.scatter_add_(0, codes, torch.ones_like(codes))  # bincount would wait for the device
        return count.to(vectors.dtype), torch.zeros_like(self.codebook).index_add_(0, codes, vectors)

    def tally(self, vectors: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """`count` and `total` of `update`, of some vectors (n, D) with their codes (n,)."""
        return self._tally(self.prepared(vectors.detach().float()), codes)

    @torch.no_grad()
    def update(self, count: Tensor, total: Tensor, decay: float) -> None:
        """One step of the moving averages, and of `unused`. A total that is not finite changes nothing.

        Counts are smoothed so that a rare code does not divide by nothing. Nothing waits for the device.

        Args:
            count: (V,) how often each code occurred in the step.
            total: (V, D) the sum of the vectors that were nearest to it.
        """
        new = [(self.unused, (self.unused + 1).masked_fill_(count > 0, 0))]
        if self.has_sums:
            counts = self.counts.mul(decay).add_(count, alpha=1 - decay)
            sums = self.sums.mul(decay).add_(total, alpha=1 - decay)
            everything = counts.sum()
            smoothed = (counts + _EPSILON) / (everything + len(counts) * _EPSILON) * everything
            new += [(self.counts, counts), (self.sums, sums), (self.codebook, sums / smoothed[:, None])]
        elif not self.by_loss:
            means = torch.where(count[:, None] > 0, F.normalize(total, dim=-1), self.codebook)
            new.append((self.codebook, F.normalize(self.codebook.mul(decay).add_(means, alpha=1 - decay), dim=-1)))
        finite = torch.isfinite(total).all()
        for buffer, value in new:
            buffer.copy_(torch.where(finite, value, buffer))

    @torch.no_grad()
    def replace_unused(self, vectors: Tensor, after: int, generator: torch.Generator) -> int:
        """Replaces codes unused for `after` steps by random vectors of the batch; returns their number.

        Args:
            vectors: (n, D), on the CPU.
            generator: Of the CPU.
        """
        dead = (self.unused >= after).nonzero().squeeze(1)
        if not len(dead) or not len(vectors):
            return 0
        rows = torch.randint(len(vectors), (len(dead),), generator=generator)
        drawn = self.prepared(vectors[rows].float()).to(self.codebook.device)
        self.codebook[dead] = drawn
        if self.has_sums:
            self.counts[dead] = 1.0
            self.sums[dead] = drawn
        self.unused[dead] = 0
        return len(dead)


class FiniteScalarQuantizer(nn.Module):
    """A grid of `levels` points a number; no codebook is learned.

    Attributes:
        mean: (d,) of the vectors: a moving average, as is `square`, the mean of their squares.
    """

    levels: Tensor
    strides: Tensor
    mean: Tensor
    square: Tensor

    def __init__(self, levels: tuple[int, ...]) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(len(levels)))
        self.register_buffer("square", torch.ones(len(levels)))
        self.register_buffer("levels", torch.tensor(levels))
        strides = torch.tensor([math.prod(levels[:place]) for place in range(len(levels))])
        self.register_buffer("strides", strides)

    def _bounded(self, vectors: Tensor) -> Tensor:
        """Within half a step of the outermost points; shifted by half a step for an even number of them."""
        standard = (vectors - self.mean) * (self.square - self.mean.square() + 1e-6).rsqrt()
        offset = torch.where(self.levels % 2 == 0, 0.5, 0.0)
        return torch.erf(standard * 2**-0.5) * (self.levels / 2 * (1 - 1e-4)) - offset

    @torch.no_grad()
    def update(self, total: Tensor, squares: Tensor, number: Tensor, decay: float) -> None:
        """One step of the moving averages. Totals that are not finite change nothing, and nothing waits for the device.

        Args:
            total: (d,) the sum of the step's vectors; `squares` (d,) that of their squares.
            number: How many there were.
        """
        finite = torch.isfinite(total).all() & torch.isfinite(squares).all()
        for average, now in ((self.mean, total / number), (self.square, squares / number)):
            average.copy_(torch.where(finite, average.lerp(now, 1 - decay), average))

    def nearest(self, vectors: Tensor) -> Tensor:
        """(..., d) to (...) int64."""
        return self._numbers(self._bounded(vectors.float()).round())

    def _numbers(self, points: Tensor) -> Tensor:
        return ((points.long() + self.levels // 2) * self.strides).sum(dim=-1)

    def lookup(self, codes: Tensor) -> Tensor:
        """(...) int64 to points (..., d) in [-1, 1]."""
        half = self.levels // 2
        return ((codes[..., None] // self.strides) % self.levels - half) / half

    def forward(self, vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns points (..., d) in [-1, 1] with the gradient of the bounded numbers; codes (...); 0."""
        bounded = self._bounded(vectors.float())
        points = bounded.round()
        half = self.levels // 2
        straight = (bounded + (points - bounded).detach()) / half
        return straight, self._numbers(points), straight.new_zeros(())


def levels_of(codes: int) -> tuple[int, ...]:
    """The levels of an FSQ of `codes` points: 3 to 9 each, as few and as even as can be, the largest first.

    Raises:
        UsageError: The number has a prime factor above 7, or is below 9.
    """
    best = min(_factorings(codes, 9), key=lambda levels: (len(levels), max(levels) - min(levels)), default=None)
    if best is None:
        near = [each for each in range(9, 1 << 17) if abs(each - codes) < max(8, codes // 16) and _factors(each)]
        shown = ", ".join(map(str, sorted(sorted(near, key=lambda each: abs(each - codes))[:3])))
        raise UsageError(
            f"--vocab-size {codes} is no product of numbers from 3 to 9, which --kind fsq needs.",
            f"Give one that is, such as {shown or '1000'}.",
        )
    return best


def _factors(codes: int) -> bool:
    return next(_factorings(codes, 9), None) is not None


def _factorings(codes: int, largest: int) -> Iterator[tuple[int, ...]]:
    """Yields every way to write it as factors from 3 to `largest`, in falling order."""
    if codes <= largest and codes >= 3:
        yield (codes,)
    for factor in range(min(largest, codes // 3), 2, -1):
        if codes % factor == 0:
            for rest in _factorings(codes // factor, factor):
                yield (factor, *rest)
