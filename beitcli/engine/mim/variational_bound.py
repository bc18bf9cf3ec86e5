"""The variational bound that masked image modeling maximizes (paper section 2.4, equations 2 and 3).

    log p(x | x~) >= E_{z ~ q(z|x)} [log p(x|z)] - KL(q(z|x) || p(z|x~))
                     stage 1: reconstruction       stage 2: masked image modeling

x is an image, x~ the same with hidden patches, z its N visual tokens. q and p(z|x~) are products over the positions, so
the KL is a sum over them. With the point mass q = [z = z^] at z^ = argmax q(z|x), the bound is
log p(x|z^) + log p(z^|x~), equation 3: KL([z = z^] || p) = -log p(z^).

All numbers are in nats and in float64. Distributions are log probabilities (..., V) along the last axis.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def categorical_kl(log_q: Tensor, log_p: Tensor) -> Tensor:
    """Computes KL(q || p) of each position: (..., V) and (..., V) to (...). A code with q = 0 adds nothing."""
    log_q, log_p = log_q.double(), log_p.double()
    q = log_q.exp()
    return torch.where(q > 0, q * (log_q - log_p), 0.0).sum(dim=-1)


def entropy(log_q: Tensor) -> Tensor:
    """Computes the entropy of each position: (..., V) to (...), 0 to ln V."""
    log_q = log_q.double()
    q = log_q.exp()
    return -torch.where(q > 0, q * log_q, 0.0).sum(dim=-1)


def point_kl(tokens: Tensor, log_p: Tensor) -> Tensor:
    """Computes KL([z = token] || p) = -log p(token) of each position: (...) int64 and (..., V) to (...)."""
    log_p = log_p.double().expand(*tokens.shape, log_p.shape[-1])
    return -log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


def uniform_log_prior(vocab_size: int) -> Tensor:
    """Returns ln(1 / V), (V,)."""
    return torch.full((vocab_size,), -math.log(vocab_size), dtype=torch.float64)


def unigram_log_prior(counts: Tensor) -> Tensor:
    """Returns the log token frequencies (V,) with one more occurrence of every code: ln((n + 1) / (sum n + V))."""
    counts = counts.double() + 1
    return counts.log() - counts.sum().log()


def sample_tokens(log_q: Tensor, uniforms: Tensor) -> Tensor:
    """Draws a code for each position by the inverse of the cumulative distribution.

    Args:
        log_q: (..., V).
        uniforms: (...) float64 in [0, 1).

    Returns:
        (...) int64; never a code with q = 0.
    """
    cumulative = log_q.double().exp().cumsum(dim=-1)
    cumulative = cumulative / cumulative[..., -1:]
    drawn = torch.searchsorted(cumulative.contiguous(), uniforms.double().unsqueeze(-1), right=True)
    return drawn.squeeze(-1).clamp(max=log_q.shape[-1] - 1)


def expected_log_likelihood(log_likelihoods: Tensor, weights: Tensor | None = None) -> Tensor:
    """Averages log p(x|z) over configurations of z: (K, ...) to (...).

    Args:
        weights: (K,) probabilities, if the configurations are all there are; None if they are K samples of q.
    """
    if weights is None:
        return log_likelihoods.double().mean(dim=0)
    return torch.tensordot(weights.double(), log_likelihoods.double(), dims=1)


def lower_bound(log_likelihood: Tensor, kl: Tensor) -> Tensor:
    """Returns E_q[log p(x|z)] - KL(q || p), both (...), the latter summed over positions."""
    return log_likelihood - kl


def mean_and_error(values: Tensor) -> tuple[float, float | None]:
    """Returns the mean of (n,) and its standard error, from the sample's deviation; None for one value."""
    error = float(values.std(correction=1)) / math.sqrt(len(values)) if len(values) > 1 else None
    return float(values.mean()), error


def bits_per_dimension(nats: float, dimensions: int) -> float:
    """Converts a log likelihood in nats to bits per dimension, of which fewer are better."""
    return -nats / (dimensions * math.log(2))
