"""Training loss of the discrete VAE: reconstruction through relaxed codes, and KL terms to the uniform prior.

With q(v | patch) the softmax of the encoder's logits (BEiT eq. 1; DALL-E, arXiv 2102.12092, section 2 and App. A):

    loss = reconstruction(images, decoder(gumbel_softmax(logits, tau)))
         + kl_weight * mean KL(q || uniform) + usage_weight * KL(mean q || uniform)

The last term, the KL of the batch's average q, is not in DALL-E. The mean KL is this term plus the mutual information
of patch and code ("ELBO surgery", Hoffman & Johnson 2016), so this term encourages even use of the codes without making
q less certain. With 256 codes on the sample images: 56 used without it after 600 steps, 251 with it after 500.

Gumbel noise comes from a seed per image, or from torch's global generator. The cost besides the two networks is a few
passes over the (B, V, h, w) logits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Reconstruction = Literal["logit-laplace", "mse", "l1"]

PIXEL_SCALE, PIXEL_SHIFT = 0.8, 0.1
_LEAST_UNIFORM = 2.0**-25  # in place of a drawn 0, half the least that is drawn beside it


def map_pixels(images: Tensor) -> Tensor:
    """Scales [0, 1] to [0.1, 0.9], where the logit-Laplace density is finite (DALL-E, App. A.3)."""
    return PIXEL_SCALE * images + PIXEL_SHIFT


def unmap_pixels(mapped: Tensor) -> Tensor:
    """Inverts `map_pixels`, clamped to [0, 1]."""
    return ((mapped - PIXEL_SHIFT) / PIXEL_SCALE).clamp(0.0, 1.0)


def gumbel_softmax(logits: Tensor, temperature: float, seeds: Tensor | None = None) -> Tensor:
    """Draws a relaxed one-hot sample from each patch's distribution (arXiv 1611.01144, 1611.00712).

    Args:
        logits: (B, V, h, w).
        temperature: Above 0; towards 0 the sample becomes one-hot.
        seeds: (B,) int64 on the CPU, one per image, so that the noise does not depend on the batch; None draws from
            torch's global generator.

    Returns:
        (B, V, h, w), non-negative, sums to 1 over V.
    """
    logits = logits.float()  # 16-bit noise has few values, including zero
    batch, codes, height, width = logits.shape
    uniform = torch.empty(batch, height, width, codes, device=logits.device)  # V last, as in channels-last logits
    if seeds is None:
        uniform.uniform_()
    else:
        generator = torch.Generator(logits.device)
        for image, seed in zip(uniform, seeds.tolist(), strict=True):
            image.uniform_(generator=generator.manual_seed(seed))
    negative_gumbel = uniform.clamp_(min=_LEAST_UNIFORM).log_().neg_().log_().permute(0, 3, 1, 2)
    return (logits - negative_gumbel).div_(temperature).softmax(dim=1)


def kl_to_uniform(logits: Tensor) -> Tensor:
    """Computes KL(q || uniform) of each patch in nats, 0 to ln V.

    Args:
        logits: (B, V, h, w), not divided by the temperature.

    Returns:
        (B, h, w).
    """
    log_q = logits.log_softmax(dim=1)
    return (log_q.exp() * log_q).sum(dim=1) + math.log(logits.shape[1])


MeanOver = Callable[[Tensor, float], Tensor]


def usage_kl(logits: Tensor, mean_over: MeanOver | None = None) -> Tensor:
    """Computes KL(mean q || uniform) in nats over all patches of a batch: 0 if all codes are used evenly, ln V for one.

    Args:
        logits: (B, V, h, w).
        mean_over: In distributed training: the weighted mean of a tensor over ranks, without gradient. The gradients,
            averaged over ranks with the same weights, are then those of the global batch.
    """
    mean_q = logits.softmax(dim=1).mean(dim=(0, 2, 3))
    if mean_over is not None:
        mean_q = mean_q + (mean_over(mean_q, float(len(logits))) - mean_q).detach()
    return torch.special.xlogy(mean_q, mean_q).sum() + math.log(logits.shape[1])


def logit_laplace_nll(mapped: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Computes the negative log likelihood of pixels under the logit-Laplace density (DALL-E, App. A.3).

    Args:
        mapped: (B, 3, H, W) in (0, 1): pixels after `map_pixels`.
        mean: (B, 3, H, W), mean of logit(pixel).
        log_scale: (B, 3, H, W), ln b.

    Returns:
        (B, 3, H, W) in nats: ln(2 b x (1 - x)) + |logit(x) - mean| / b, which can be negative.
    """
    jacobian = (2.0 * mapped * (1.0 - mapped)).log()
    return jacobian + log_scale + (mapped.logit() - mean).abs() * (-log_scale).exp()


def reconstruction_loss(images: Tensor, decoded: Tensor, kind: Reconstruction) -> Tensor:
    """Computes the reconstruction loss, averaged over pixels and channels.

    Args:
        images: (B, 3, H, W) in [0, 1].
        decoded: (B, 3 or 6, H, W), the decoder's output; "logit-laplace" needs all 6 channels.
    """
    if kind == "logit-laplace":
        mean, log_scale = decoded.chunk(2, dim=1)
        return logit_laplace_nll(map_pixels(images), mean, log_scale).mean()
    mapped = decoded[:, :3].sigmoid()
    if kind == "mse":
        return F.mse_loss(mapped, map_pixels(images))
    return F.l1_loss(mapped, map_pixels(images))


def dvae_loss(
    model: Callable[..., tuple[Tensor, Tensor]],
    images: Tensor,
    temperature: float,
    kl_weight: float,
    reconstruction: Reconstruction = "logit-laplace",
    usage_weight: float = 0.0,
    noise: Tensor | None = None,
    mean_over: MeanOver | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Computes the training loss of one batch.

    Args:
        model: A `DiscreteVAE`, or a wrapper such as DDP.
        noise: (B,) seeds, see `gumbel_softmax`.
        mean_over: See `usage_kl`.
        images: (B, 3, H, W) in [0, 1].
        temperature: Temperature of the Gumbel-softmax; in DALL-E a cosine schedule from 1.
        kl_weight: Weight of the KL, averaged over tokens. DALL-E's beta of 6.6 is 6.6 / 192 here.
        usage_weight: Weight of `usage_kl`; not in DALL-E.

    Returns:
        The loss, and detached scalars: `loss`, `reconstruction`, `kl` (nats per token), `usage_kl` (nats).
    """
    logits, decoded = model(images, temperature, noise)
    logits = logits.float()
    parts = {
        "reconstruction": reconstruction_loss(images, decoded, reconstruction),
        "kl": kl_to_uniform(logits).mean(),
        "usage_kl": usage_kl(logits, mean_over),
    }
    loss = parts["reconstruction"] + kl_weight * parts["kl"] + usage_weight * parts["usage_kl"]
    return loss, {"loss": loss.detach(), **{name: part.detach() for name, part in parts.items()}}


def codebook_usage(counts: Tensor) -> tuple[int, float]:
    """Measures how evenly the codes are used.

    Args:
        counts: (V,), number of occurrences of each code.

    Returns:
        Number of codes that occur; perplexity, exp of the entropy in nats, 1 to V.
    """
    probabilities = counts.cpu().double() / counts.sum().clamp(min=1).cpu()
    entropy = -torch.special.xlogy(probabilities, probabilities).sum()
    return int((counts > 0).sum()), float(entropy.exp())


def psnr(mean_squared_error: float) -> float:
    """Peak signal-to-noise ratio in dB of [0, 1] images, from the mean squared error over the whole dataset."""
    return math.inf if mean_squared_error == 0.0 else -10.0 * math.log10(mean_squared_error)


def mae(images: Tensor, reconstructions: Tensor) -> Tensor:
    """Mean absolute error of [0, 1] images, a scalar."""
    return (images - reconstructions).abs().mean()
