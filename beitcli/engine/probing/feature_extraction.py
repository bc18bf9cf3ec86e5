"""Pooled features of all images of a source: computed once, kept in the cache, read from there ever after.

Each batch stands for itself (`feature_batches`), so that they can be shared out; `FeatureWriter` wants them in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from beitcli import __version__
from beitcli.data.caches.feature_cache import Features, FeatureWriter, load_features
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.transforms.base import evaluation_crop, evaluation_view, normalize
from beitcli.engine.events import Note, OnEvent, Progress, ignore
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import Preprocessing
from beitcli.models.networks.pooled_features import Visited, pooled_features
from beitcli.runtime.compute.device import Compute

_EVERY = "all"


def feature_batches(
    model: Visited,
    source: Source,
    view: Preprocessing,
    compute: Compute,
    layers: Sequence[int],
    pool: str,
    batch_size: int,
    workers: int,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """This process's batches in order, each with the (layers, b, D) float32 features of its readable images."""
    crop, world = evaluation_view(model.architecture.image_size, view.crop_share), compute.world
    for batch in ordered_batches(source, crop, batch_size=batch_size, workers=workers, share=(world.rank, world.size)):
        if not len(batch):
            yield batch, np.zeros((len(layers), 0, model.architecture.width), dtype=np.float32)
            continue
        images = normalize(batch.to(compute.device)["images"], *view.normalization)
        with torch.inference_mode(), compute.autocast():
            features = pooled_features(model, images, layers, pool)
        yield batch, features.cpu().numpy()


def description(
    weights: str, model: Visited, source: Source, view: Preprocessing, compute: Compute, pool: str
) -> dict[str, Any]:
    """All that features follow from but the layers.

    Args:
        weights: `weights_digest` of the model.
    """
    size = model.architecture.image_size
    return {
        "weights": weights,
        "architecture": {name: _plain(value) for name, value in model.architecture.as_dict().items()},
        "data": contents_stamp(source),
        "images": len(source),
        "crop_share": view.crop_share or evaluation_crop(size),
        "normalization": [list(part) for part in view.normalization],
        "precision": compute.precision,
        "device": compute.device.type,
        "pool": pool,
        "versions": [__version__, torch.__version__],
    }


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def features_of(
    model: Visited,
    source: Source,
    view: Preprocessing,
    compute: Compute,
    *,
    weights: str,
    layers: Sequence[int],
    pool: str,
    cache: Path,
    batch_size: int,
    workers: int,
    on_event: OnEvent = ignore,
) -> Features | None:
    """The features of a source, from the cache where it has them whole.

    The first process's cache decides, for each machine may have its own; all help to compute what it has not.

    Args:
        weights: `weights_digest` of the model, which is in evaluation mode on the device.
        layers: Blocks from 1; all of them are kept together, and serve for each of them later.
        cache: The folder they are kept in.

    Returns:
        None in all processes but the first, which alone reads them.

    Raises:
        StorageError: They cannot be kept, or are not finite.
    """
    first = compute.world.is_first
    about = description(weights, model, source, view, compute, pool) if first else {}
    depth = model.architecture.depth
    own = _EVERY if list(layers) == list(range(1, depth + 1)) else list(layers)
    found: list[Features] = []

    def look(*kept: str | list[int]) -> bool:
        for each in kept:
            features = load_features(cache, about | {"layers": each}, layers)
            if features is not None:
                found.append(features)
                return True
        return False

    if compute.world.run_on_rank_zero(lambda: look(_EVERY, own)):
        on_event(Note(f"Features of {len(source):,} images of '{source.name}' are taken from {cache}"))
    else:
        batches = feature_batches(model, source, view, compute, layers, pool, batch_size, workers)
        described = about | {"layers": own}
        _write(batches, cache, described, layers, source, model.architecture.width, batch_size, compute, on_event)
        if not compute.world.run_on_rank_zero(lambda: look(own)):
            raise StorageError(f"The features just written to '{cache}' read otherwise.", "Check the disk.")
    return found[0] if found else None


def _write(
    batches: Iterator[tuple[Batch, np.ndarray]],
    cache: Path,
    about: dict[str, Any],
    layers: Sequence[int],
    source: Source,
    width: int,
    batch_size: int,
    compute: Compute,
    on_event: OnEvent,
) -> None:
    """Every process computes its batches; the first one writes those of all, a round at a time."""
    world = compute.world
    with FeatureWriter(cache, about, layers, len(source), width) if world.is_first else nullcontext() as writer:
        for _ in range(-(-len(source) // (batch_size * world.size))):
            for part in world.gather(_part(next(batches, None))):
                if part is None or writer is None:
                    continue
                features, labels, indices, bad = part
                if not np.isfinite(features).all():
                    raise StorageError(
                        f"Features in {compute.precision} are not finite.",
                        "Give --precision fp32, or another checkpoint.",
                    )
                writer.add(features, labels, indices, bad)
                on_event(Progress(f"features of {source.name}", writer.written, len(source), "image"))
        if writer is not None:
            writer.finish()


def _part(
    computed: tuple[Batch, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, Sequence[int], Sequence[Any]] | None:
    if computed is None:
        return None
    batch, features = computed
    labels = batch.tensors["labels"].numpy() if len(batch) else np.zeros(0, dtype=np.int64)
    return features, labels, batch.indices, batch.bad
