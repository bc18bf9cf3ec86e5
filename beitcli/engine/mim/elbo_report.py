"""The report of `beit eval --protocol elbo`, and its two tables from the terms of single images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from beitcli.engine.mim.bound_measurement import Terms, stage_one
from beitcli.engine.mim.variational_bound import bits_per_dimension, lower_bound, mean_and_error
from beitcli.engine.trainer.reports import Evaluated


@dataclass(frozen=True)
class ElboReport(Evaluated):
    """The variational bound; numbers are nats per image, `se` standard errors over images, `bits_per_dim` per channel.

    Attributes:
        positions: `hidden` or `all`; `num_positions` is their number per image.
        tokenizer: Its reference, with `vocab_size` codes.
        likelihood: `logit-laplace` or `gaussian`; None without a decoder, as are `dimensions` and the bounds.
        deviation: Of the Gaussian, in pixel levels of 0 to 255, fitted on `train_images` images of `train`.
        dimensions: Pixels times channels of the tokenizer's image.
        samples: Samples of q per image.
        unigram_counts: Where the token frequencies come from: `run`, `train`, or None for none.
        posterior_entropy: Of q, summed over the positions; 0 for quantizers.
        bound: Of the model's prior, with the expectation over q; with z^ if there are no samples.
        stage1: log p(x|z) by `z`: `argmax` (z^), `posterior` (mean of the samples; `sampling_se` is the standard error
            of the mean that comes from sampling). `density` is that per pixel level, of z^.
        stage2: By `prior` and `z`: `nats` are -log p(z^) or KL(q || p), and the bound with it.
    """

    positions: str
    num_positions: int
    tokenizer: str
    vocab_size: int
    likelihood: str | None
    deviation: float | None
    dimensions: int | None
    samples: int
    train: str | None
    train_images: int | None
    unigram_counts: str | None
    posterior_entropy: float
    bound: float | None
    bound_se: float | None
    bits_per_dim: float | None
    stage1: list[dict[str, Any]]
    stage2: list[dict[str, Any]]


def stage_one_rows(terms: Terms, dimensions: int) -> list[dict[str, Any]]:
    """Returns the rows of stage 1: of z^ and, if there are samples, of the expectation over q."""
    values: list[tuple[str, Tensor, Tensor | None]] = [("argmax", terms["point"], None)]
    if terms["samples"].shape[1]:
        values.append(("posterior", *stage_one(terms)))
    rows = []
    for name, nats, sampling in values:
        mean, error = mean_and_error(nats)
        density = float(terms["density"].mean()) if name == "argmax" else None
        rows.append(
            {
                "z": name,
                "nats": mean,
                "se": error,
                "sampling_se": None if sampling is None else float(sampling),
                "bits_per_dim": bits_per_dimension(mean, dimensions),
                "density": density,
            }
        )
    return rows


def stage_two_rows(terms: Terms, dimensions: int) -> list[dict[str, Any]]:
    """Returns the rows of stage 2, with the bound of each if stage 1 was measured."""
    expected = stage_one(terms)[0] if "samples" in terms and terms["samples"].shape[1] else None
    rows = []
    for prior in [name.removeprefix("kl ") for name in terms if name.startswith("kl ")]:
        for z, kl, likelihood in (
            ("argmax", terms[f"point {prior}"], terms.get("point")),
            ("posterior", terms[f"kl {prior}"], expected),
        ):
            nats, error = mean_and_error(kl)
            row: dict[str, Any] = {"prior": prior, "z": z, "nats": nats, "se": error}
            bound, bound_error = (None, None) if likelihood is None else mean_and_error(lower_bound(likelihood, kl))
            bits = None if bound is None else bits_per_dimension(bound, dimensions)
            rows.append(row | {"bound": bound, "bound_se": bound_error, "bits_per_dim": bits})
    return rows
