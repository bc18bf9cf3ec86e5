"""Log probabilities of 8-bit images under a tokenizer's decoder, p(x|z) of the variational bound.

A decoder gives a density of each pixel's channel. The probability of level k in 0, ..., 255 is the density's mass in
the bin from (k - 1/2) / 255 to (k + 1/2) / 255; the bins of 0 and 255 reach to minus and plus infinity, so that the 256
probabilities sum to 1. This is a probability of the stored image, at most 1, in no unit. Uniform dequantization gives
E_u[log density] of at most this, by Jensen's inequality.

    logit-Laplace:  logit(0.8 x + 0.1) has the Laplace density of mean m and scale b       (DALL-E, App. A.3)
    Gaussian:       x has the normal density of the decoded pixel and one deviation, fitted on training images

`*_log_density` is the density at the level itself, in units of 1 / levels (1/255 of the range): log f(x) + ln(1/255),
with the Jacobian of logit and of 0.8 x + 0.1 for logit-Laplace. It is what training by logit-Laplace maximizes, and
close to the probability where the density is smooth over a bin; it can exceed 1.

Images are (B, 3, H, W) levels, results (B,) in nats, summed over pixels and channels in float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from beitcli.tokenizers.dvae_loss import PIXEL_SCALE, logit_laplace_nll, map_pixels

LEVELS = 255  # the highest level
_SMALLEST = 1e-9  # deviation of a Gaussian that reconstructs exactly


def logit_laplace_log_mass(levels: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log probability of images under the logit-Laplace density; mean and ln b are (B, 3, H, W)."""
    mean, inverse = mean.double(), (-log_scale.double()).exp()
    return laplace_log_mass(*_bins(levels, lambda x: (map_pixels(x).logit() - mean) * inverse)).sum(dim=(1, 2, 3))


def logit_laplace_log_density(levels: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log density per level under logit-Laplace; mean and ln b are (B, 3, H, W)."""
    nll = logit_laplace_nll(map_pixels(levels.double() / LEVELS), mean.double(), log_scale.double())
    return (math.log(PIXEL_SCALE / LEVELS) - nll).sum(dim=(1, 2, 3))


def gaussian_log_mass(levels: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Log probability of images under the normal density; mean is (B, 3, H, W) in [0, 1], as is the deviation."""
    mean, deviation = mean.double(), max(deviation, _SMALLEST)
    return normal_log_mass(*_bins(levels, lambda x: (x - mean) / deviation)).sum(dim=(1, 2, 3))


def gaussian_log_density(levels: Tensor, mean: Tensor, deviation: float) -> Tensor:
    """Log density per level under the normal density; arguments as for `gaussian_log_mass`."""
    deviation = max(deviation, _SMALLEST)
    standard = (levels.double() / LEVELS - mean.double()) / deviation
    constant = math.log(LEVELS * deviation) + 0.5 * math.log(2 * math.pi)
    return (-0.5 * standard.square() - constant).sum(dim=(1, 2, 3))


def fitted_deviation(squared_error: float, values: int) -> float:
    """Returns the deviation that maximizes the Gaussian density: the root of the mean squared error."""
    return math.sqrt(squared_error / values)


def _bins(levels: Tensor, standard: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Returns the standardized edges of the levels' bins."""
    middle = levels.double()
    lower = standard((middle - 0.5) / LEVELS).masked_fill(levels == 0, -torch.inf)
    upper = standard((middle + 0.5) / LEVELS).masked_fill(levels == LEVELS, torch.inf)
    return lower, upper


def laplace_log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Log probability that a Laplace variable of mean 0 and scale 1 lies between, without cancellation in the tails."""
    tail = -torch.where(lower >= 0, lower, -upper) - math.log(2) + torch.log1p(-(lower - upper).exp())
    middle = (-0.5 * (lower.clamp(max=0).expm1() + (-upper.clamp(min=0)).expm1())).log()
    return torch.where((lower < 0) & (upper > 0), middle, tail)


def normal_log_mass(lower: Tensor, upper: Tensor) -> Tensor:
    """Log probability that a standard normal variable lies between, without cancellation in the tails."""
    flipped = lower > 0
    lower, upper = torch.where(flipped, -upper, lower), torch.where(flipped, -lower, upper)
    whole = torch.special.log_ndtr(upper)
    return whole + torch.log1p(-(torch.special.log_ndtr(lower) - whole).exp())
