"""Pooled features of all images of a source, computed once and then read from the cache.

Whole batches are sharded over ranks; `FeatureWriter` receives them in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
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
from beitcli.models.networks.pooled_features import SupportsBlockOutputs, pooled_features
from beitcli.runtime.compute.device import Compute

_EVERY = "all"


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A model in evaluation mode on its device, and the requested features.

    Attributes:
        weights: `weights_digest` of the model.
        layers: Blocks, from 1; if all are requested they are cached together, and serve any of them later.
        pool: `mean` over the patches, or the `class` token.
        cache: Folder of the feature cache.
    """

    model: SupportsBlockOutputs
    transform: Preprocessing
    compute: Compute
    weights: str
    layers: Sequence[int]
    pool: str
    cache: Path
    batch_size: int
    workers: int
    on_event: OnEvent = ignore

    def features(self, source: Source) -> Features | None:
        """Returns the features of a source, from the cache if it has all of them.

        The cache of rank 0 decides, as each machine may have its own; all ranks compute what is missing.

        Returns:
            None on all ranks but rank 0, which alone reads the features.

        Raises:
            StorageError: They cannot be written, or are not finite.
        """
        world = self.compute.world
        about = self._identity(source) if world.is_rank_zero else {}
        own = _EVERY if list(self.layers) == list(range(1, self.model.architecture.depth + 1)) else list(self.layers)
        found: list[Features] = []

        def look(*kept: str | list[int]) -> bool:
            for each in kept:
                features = load_features(self.cache, about | {"layers": each}, self.layers)
                if features is not None:
                    found.append(features)
                    return True
            return False

        if world.run_on_rank_zero(lambda: look(_EVERY, own)):
            self.on_event(Note(f"Features of {len(source):,} images of '{source.name}' are taken from {self.cache}"))
        else:
            self._compute(source, about | {"layers": own})
            if not world.run_on_rank_zero(lambda: look(own)):
                raise StorageError(f"The features just written to '{self.cache}' read otherwise.", "Check the disk.")
        return found[0] if world.is_rank_zero else None

    def _identity(self, source: Source) -> dict[str, Any]:
        """Returns everything that the features depend on, except the layers."""
        architecture, transform = self.model.architecture, self.transform
        return {
            "weights": self.weights,
            "architecture": {name: _plain(value) for name, value in architecture.as_dict().items()},
            "data": contents_stamp(source),
            "images": len(source),
            "crop_share": transform.crop_pct or evaluation_crop(architecture.image_size),
            "normalization": [list(part) for part in transform.normalization],
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "pool": self.pool,
            "versions": [__version__, torch.__version__],
        }

    def _batches(self, source: Source) -> Iterator[tuple[Batch, np.ndarray]]:
        """Yields this rank's batches in order, each with the (layers, b, D) float32 features of its readable images."""
        architecture, world = self.model.architecture, self.compute.world
        crop = evaluation_view(architecture.image_size, self.transform.crop_pct)
        share = (world.rank, world.size)
        for batch in ordered_batches(source, crop, batch_size=self.batch_size, workers=self.workers, share=share):
            if not len(batch):
                yield batch, np.zeros((len(self.layers), 0, architecture.width), dtype=np.float32)
                continue
            images = normalize(batch.to(self.compute.device)["images"], *self.transform.normalization)
            with torch.inference_mode(), self.compute.autocast():
                features = pooled_features(self.model, images, self.layers, self.pool)
            yield batch, features.cpu().numpy()

    def _compute(self, source: Source, about: dict[str, Any]) -> None:
        """Computes this rank's batches; rank 0 writes those of all ranks, one batch per rank at a time."""
        world, batches, width = self.compute.world, self._batches(source), self.model.architecture.width
        writing = (
            FeatureWriter(self.cache, about, self.layers, len(source), width) if world.is_rank_zero else nullcontext()
        )
        with writing as writer:
            for _ in range(-(-len(source) // (self.batch_size * world.size))):
                for part in world.gather(_part(next(batches, None))):
                    if part is None or writer is None:
                        continue
                    features, labels, indices, bad = part
                    if not np.isfinite(features).all():
                        raise StorageError(
                            f"Features in {self.compute.precision} are not finite.",
                            "Give --precision fp32, or another checkpoint.",
                        )
                    writer.add(features, labels, indices, bad)
                    self.on_event(Progress(f"features of {source.name}", writer.written, len(source), "image"))
            if writer is not None:
                writer.finish()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _part(
    computed: tuple[Batch, np.ndarray] | None,
) -> tuple[np.ndarray, np.ndarray, Sequence[int], Sequence[Any]] | None:
    if computed is None:
        return None
    batch, features = computed
    labels = batch.tensors["labels"].numpy() if len(batch) else np.zeros(0, dtype=np.int64)
    return features, labels, batch.indices, batch.bad
