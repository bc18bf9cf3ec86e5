"""Linear probes that learn from new crops and flips in each epoch, as the paper's (appendix D) and the release's do.

    position of the stream --> image, view = f(seed, epoch, image) --> frozen model --> feature --> step of the heads

Each epoch is a forward pass of all images, shared by the ranks in whole batches; rank 0 trains the heads. Order and
views are keyed and the batches are the same for any number of ranks, so the heads are, too. Steps are cut by position:
an unreadable image is missing from its step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch

from beitcli.data.caches.feature_cache import Bad
from beitcli.data.loading.sampler import training_order
from beitcli.data.sources.base import Source
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import CropFlipTransform
from beitcli.engine.events import Progress
from beitcli.engine.probing.feature_extraction import FeatureExtractor, Part
from beitcli.engine.probing.linear_probe import LinearProbes, ProbeTrainer, ProbeTraining

Moments = Mapping[int, tuple[np.ndarray, np.ndarray]]


def train_augmented(
    extractor: FeatureExtractor,
    source: Source,
    how: ProbeTraining,
    standard: Moments,
    check_bad: Callable[[Sequence[Bad]], None],
) -> tuple[LinearProbes | None, Sequence[Bad]]:
    """Trains one head for each of the extractor's layers; all ranks must call this.

    Args:
        standard: Layer -> mean and standard deviation that features are standardized with; empty for none.
        check_bad: Called on all ranks after the first epoch, with the unreadable images.

    Returns:
        The heads, on rank 0 only, and the unreadable images.
    """
    compute, layers, images = extractor.compute, extractor.layers, len(source)
    trainer = None
    if compute.world.is_rank_zero:
        trainer = ProbeTrainer(layers, extractor.width, len(source.classes or ()), how, images, compute.device)
    order = training_order(source, how.seed)
    view = CropFlipTransform(seed=how.seed, size=extractor.model.architecture.image_size)
    bad: list[Bad] = []
    for epoch in range(how.epochs):
        chosen = order.indices(np.arange(epoch * images, (epoch + 1) * images))[1]
        parts = extractor.parts(Subset(source, chosen), replace(view, epoch=epoch))
        if epoch == 0:
            parts = _noting(parts, bad)
        for number, features, labels in steps(parts, images, how.batch_size):
            if trainer is not None and len(labels):
                features = standardized(features, layers, standard)
                on_device = (torch.from_numpy(values).to(compute.device) for values in (features, labels))
                trainer.step(epoch, number, *on_device)
            seen = epoch * images + min(images, (number + 1) * how.batch_size)
            extractor.on_event(Progress("linear probe", seen, how.epochs * images, "image"))
        if epoch == 0:
            bad = sorted((int(chosen[place]), path, reason) for place, path, reason in bad)
            check_bad(bad)
    return None if trainer is None else trainer.probes.eval(), bad


def _noting(parts: Iterable[Part], bad: list[Bad]) -> Iterator[Part]:
    for part in parts:
        bad += part.bad
        yield part


def steps(parts: Iterable[Part], images: int, batch_size: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Joins the parts of an epoch, in order, and cuts them into steps of `batch_size` positions.

    Yields:
        Number of the step, (layers, b, D) features and (b,) labels of its readable images.
    """
    held: list[Part] = []
    number = seen = 0
    for part in parts:
        held.append(part)
        seen += part.images
        while number * batch_size < images and seen >= min((number + 1) * batch_size, images):
            features = np.concatenate([each.features for each in held], axis=1)
            labels = np.concatenate([each.labels for each in held])
            places = np.concatenate([np.asarray(each.indices, dtype=np.int64) for each in held])
            now = places < (number + 1) * batch_size
            yield number, features[:, now], labels[now]
            held = [Part(features[:, ~now], labels[~now], places[~now].tolist(), ())]
            number += 1


def standardized(features: np.ndarray, layers: Sequence[int], standard: Moments) -> np.ndarray:
    """Standardizes (layers, b, D) features as `Features.take` does."""
    if not standard:
        return features
    mean, deviation = (np.stack([standard[layer][which] for layer in layers])[:, None] for which in (0, 1))
    return (features - mean) / deviation
