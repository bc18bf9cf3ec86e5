"""The terms of the variational bound for each image of a source, from the tokenizer and the pretrained model.

    q(z|x)    softmax of the tokenizer's logits, or a point mass at its tokens
    p(x|z)    the tokenizer's decoder (`pixel_likelihood.py`)
    p(z|x~)   softmax of the model's logits, image patches hidden by the mask

Whole batches are shared out to the ranks, and the values of single images are gathered in their order: nothing depends
on the number of processes. The tokenizer computes in fp32 and sees eight images at a time, as in pretraining on a CPU,
so the tokens are those that pretraining computes there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from beitcli.config.normalization import Normalization
from beitcli.data.loading.batch_datasets import Masking, Transform
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import normalize
from beitcli.engine.events import Progress
from beitcli.engine.mim import pixel_likelihood as pixels
from beitcli.engine.mim.variational_bound import (
    categorical_kl,
    entropy,
    expected_log_likelihood,
    point_kl,
    sample_tokens,
)
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.runtime.compute.keyed_rng import keyed_generator
from beitcli.tokenizers.base import INVARIANT_BATCH, Tokenizer

MODEL_PRIOR = "model"
Terms = dict[str, Tensor]  # (n,) or (n, K) float64 each, a row an image


@dataclass(frozen=True, kw_only=True)
class BoundMeter:
    """What is measured, and with what.

    Attributes:
        all_positions: Whether all patches count; else the hidden ones.
        samples: K, the samples of q for the expectation of stage 1.
        seed: Of the samples.
        deviation: Of the Gaussian, of pixels in [0, 1]; None for logit-Laplace.
        priors: Log probabilities (V,) of the priors that ignore the image, by name.
    """

    model: MaskedImageModel
    tokenizer: Tokenizer
    normalization: Normalization
    batching: Batching
    all_positions: bool
    samples: int
    seed: int
    deviation: float | None = None
    priors: dict[str, Tensor] = field(default_factory=dict)

    def measure(self, source: Source, transform: Transform, masking: Masking | None) -> tuple[Terms, list[Bad]]:
        """Returns the terms of all readable images in order, on all ranks, and the unreadable images.

        Args:
            transform: Gives `images` and `token_images`, uint8.
            masking: None hides nothing.
        """
        world, parts, bad, seen = self.batching.compute.world, [], [], 0
        for batch, tensors in self.batching.on_device(source, transform, masking):
            bad.append(batch.bad)
            keys = [source.global_index(index) for index in batch.indices]
            parts.append(self.terms(tensors, keys) if len(batch) else {})
            seen += len(batch) + len(batch.bad)
            self.batching.on_event(
                Progress(f"bound of {source.name}", min(seen * world.size, len(source)), len(source), "image")
            )
        everyone = [terms for terms in world.gather_interleaved(parts) if terms]
        names = everyone[0] if everyone else {}
        terms = {name: torch.cat([part[name] for part in everyone]) for name in names}
        return terms, [record for records in world.gather_interleaved(bad) for record in records]

    @torch.no_grad()
    def terms(self, batch: dict[str, Tensor], keys: Sequence[int]) -> Terms:
        """Returns the terms of a batch, on the CPU.

        Sums over positions, (B,): `entropy` of q and, by prior, `point NAME` = -log p(z^) and `kl NAME` = KL(q || p).
        `point` (B,) is log p(x|z^), `density` (B,) the log density per level there, `samples` (B, K) log p(x|z) of
        samples of q; these three are missing without a decoder.

        Args:
            batch: `images`, `token_images`, and `mask` (B, N) if patches are hidden.
            keys: Index in DATA of each image.
        """
        log_p = self._log_predictions(batch)
        parts: list[Terms] = []
        for first in range(0, len(keys), INVARIANT_BATCH):
            piece = slice(first, first + INVARIANT_BATCH)
            tokens, log_q = self._posterior(batch["token_images"][piece])
            terms = self._pixel_terms(batch["token_images"][piece], tokens, log_q, keys[piece])
            counted = None if self.all_positions else batch["mask"][piece]
            terms |= self._token_terms(_at(tokens, counted), _at(log_q, counted), log_p[piece])
            parts.append(terms)
        return {name: torch.cat([part[name] for part in parts]).cpu() for name in parts[0]}

    def _log_predictions(self, batch: dict[str, Tensor]) -> Tensor:
        """Returns log p(z|x~) at the positions that count, (B, positions, V) in fp32."""
        images = normalize(batch["images"], *self.normalization)
        mask, every = batch.get("mask"), None
        if self.all_positions:
            number = self.model.patch_embed.num_patches
            every = torch.arange(number, device=images.device).expand(len(images), number)
        with self.batching.compute.autocast():
            logits = self.model(images, mask, every)
        return logits.float().unflatten(0, (len(images), -1)).log_softmax(dim=-1)

    def _posterior(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns z^ (b, N) and log q (b, N, V) in float64, None for a point mass, of at most eight images."""
        model, missing = self.tokenizer.model, INVARIANT_BATCH - len(images)
        whole = torch.cat((images, images.new_zeros(missing, *images.shape[1:])))
        pixels = model.preprocess(whole)
        logits = model.code_logits(pixels)
        if logits is None:
            return model.encode(pixels)[: len(images)], None
        logits = logits[: len(images)]
        return logits.argmax(dim=-1), logits.double().log_softmax(dim=-1)

    def _token_terms(self, tokens: Tensor, log_q: Tensor | None, log_p: Tensor) -> Terms:
        priors = {MODEL_PRIOR: log_p} | {name: prior.to(log_p.device) for name, prior in self.priors.items()}
        terms = {f"point {name}": point_kl(tokens, prior).sum(dim=-1) for name, prior in priors.items()}
        if log_q is None:
            terms |= {f"kl {name}": terms[f"point {name}"] for name in priors}
            return terms | {"entropy": torch.zeros_like(terms[f"point {MODEL_PRIOR}"])}
        terms |= {f"kl {name}": categorical_kl(log_q, prior).sum(dim=-1) for name, prior in priors.items()}
        return terms | {"entropy": entropy(log_q).sum(dim=-1)}

    def _pixel_terms(self, levels: Tensor, tokens: Tensor, log_q: Tensor | None, keys: Sequence[int]) -> Terms:
        if not self.tokenizer.can_decode:
            return {}
        point, density = self.log_likelihood(levels, tokens)
        if log_q is None:  # every sample is z^
            return {"point": point, "density": density, "samples": point[:, None].expand(-1, self.samples)}
        drawn = [self.log_likelihood(levels, self._sampled(log_q, keys, k))[0] for k in range(self.samples)]
        stacked = torch.stack(drawn, dim=1) if drawn else point.new_zeros(len(point), 0)
        return {"point": point, "density": density, "samples": stacked}

    def _sampled(self, log_q: Tensor, keys: Sequence[int], sample: int) -> Tensor:
        """Returns the sample number `sample` of q for each image, keyed by its index in DATA."""
        count = log_q.shape[1]
        rows = [keyed_generator(self.seed, "posterior", sample, key).random(count) for key in keys]
        return sample_tokens(log_q, torch.from_numpy(np.stack(rows)).to(log_q.device))

    def log_likelihood(self, levels: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Returns log p(x|z) as a probability and as a density per level, (b,) each.

        Args:
            levels: (b, 3, H, W) uint8.
            tokens: (b, N) int64.
        """
        model = self.tokenizer.model
        grid = levels.shape[-2] // model.downsample, levels.shape[-1] // model.downsample
        if model.has_logit_laplace:
            mean, log_scale = model.logit_laplace(tokens, grid)
            return (
                pixels.logit_laplace_log_mass(levels, mean, log_scale),
                pixels.logit_laplace_log_density(levels, mean, log_scale),
            )
        assert self.deviation is not None
        mean = model.decode(tokens, grid)
        return (
            pixels.gaussian_log_mass(levels, mean, self.deviation),
            pixels.gaussian_log_density(levels, mean, self.deviation),
        )


def _at(values: Tensor | None, mask: Tensor | None) -> Tensor:
    """Returns (b, M, ...), the positions of a mask (b, N) with M True in each row, of (b, N, ...)."""
    if values is None or mask is None:
        return values  # type: ignore[return-value]
    return values[mask].unflatten(0, (len(mask), -1))


def stage_one(terms: Terms) -> tuple[Tensor, Tensor | None]:
    """Returns E_q[log p(x|z)] of each image, estimated from its samples, and the standard error of their mean over all.

    The second is None with fewer than two samples: it is of the sampling alone, for these images.
    """
    samples = terms["samples"]
    count = samples.shape[1]
    error = None
    if count > 1:
        error = (samples.var(dim=1, correction=1) / count).sum().sqrt() / len(samples)
    return expected_log_likelihood(samples.T), error


@dataclass(frozen=True)
class TrainingStatistics:
    """Of the training images under the tokenizer: the deviation of pixels from their reconstruction, and its tokens.

    Attributes:
        deviation: Root mean square of pixel - decode(z^), both in [0, 1]; None without a decoder.
        counts: (V,) int64, how often each code occurs.
        images: Number of images that were read.
    """

    deviation: float | None
    counts: Tensor
    images: int
    bad: tuple[Bad, ...]


@torch.no_grad()
def training_statistics(
    tokenizer: Tokenizer, batching: Batching, source: Source, transform: Transform
) -> TrainingStatistics:
    """Fits the Gaussian's deviation to training images, and counts their tokens.

    Args:
        transform: Gives `token_images`, uint8.
    """
    world, model = batching.compute.world, tokenizer.model
    counts = torch.zeros(tokenizer.vocab_size, dtype=torch.int64, device=batching.compute.device)
    parts: list[tuple[float, int, int]] = []  # of a batch: squared error, values, images
    bad: list[list[Bad]] = []
    for batch, tensors in batching.on_device(source, transform):
        bad.append(batch.bad)
        error, values = 0.0, 0
        if len(batch):
            images = tensors["token_images"]
            tokens = tokenizer.encode_batch_invariant(images)
            counts += torch.bincount(tokens.flatten(), minlength=tokenizer.vocab_size)
            if tokenizer.can_decode:
                grid = images.shape[-2] // model.downsample, images.shape[-1] // model.downsample
                difference = model.decode(tokens, grid).double() - images.double() / pixels.LEVELS
                error, values = float(difference.square().sum()), difference.numel()
        parts.append((error, values, len(batch)))
    error, values, images_read = map(sum, zip(*world.gather_interleaved(parts), strict=True))
    return TrainingStatistics(
        deviation=pixels.fitted_deviation(error, values) if values else None,
        counts=world.all_reduce_sum(counts).cpu(),
        images=images_read,
        bad=tuple(record for records in world.gather_interleaved(bad) for record in records),
    )
