"""Pooled features of all images of a source, computed once and then read from the cache.

Whole batches are sharded over ranks; `FeatureWriter` receives them in order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch

from beitcli import __version__
from beitcli.data.caches.feature_cache import Bad, Features, FeatureWriter, load_features
from beitcli.data.caches.feature_note import note_of
from beitcli.data.decode import DECODING
from beitcli.data.loading.batch_datasets import Transform
from beitcli.data.loading.batches import Batch, ordered_batches
from beitcli.data.sources.base import Source
from beitcli.data.sources.content_stamp import contents_stamp
from beitcli.data.transforms.base import CenterTransform, evaluation_view, normalize
from beitcli.engine.events import Note, OnEvent, Progress, ignore
from beitcli.engine.trainer.distributed_eval import next_or_error
from beitcli.engine.trainer.prefetch import on_device
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import Preprocessing
from beitcli.models.networks.pooled_features import SupportsBlockOutputs, feature_shape, pooled_features, pooled_width
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.metric_text import counted

_EVERY = "all"


@dataclass(frozen=True)
class Part:
    """Features of the readable images of one batch.

    Attributes:
        features: (layers, b, *shape) float32.
        labels: (b,) int64; -1 without classes.
        indices: Of the b images in the source.
        bad: (index, path, reason) of the other images of the batch.
    """

    features: np.ndarray
    labels: np.ndarray
    indices: Sequence[int]
    bad: Sequence[Bad]

    @property
    def images(self) -> int:
        return len(self.indices) + len(self.bad)


@dataclass(frozen=True, kw_only=True)
class FeatureExtractor:
    """A model in evaluation mode on its device, and the requested features.

    Attributes:
        weights: `weights_digest` of the model.
        layers: Blocks, from 1; if all are requested they are cached together, and serve any of them later.
        pool: `mean` over the patches, the `class` token, `class+mean`, or `none`, which is never cached.
        norm: Whether each token is normed before.
        cache: Folder of the feature cache, which `features` needs.
        named: The MODEL as it was given, for the note beside kept features.
    """

    model: SupportsBlockOutputs
    transform: Preprocessing
    compute: Compute
    weights: str
    layers: Sequence[int]
    pool: str
    norm: bool
    batch_size: int
    workers: int
    cache: Path = Path()
    named: str = ""
    on_event: OnEvent = ignore

    @property
    def width(self) -> int:
        """Length of a feature."""
        return pooled_width(self.model.architecture, self.pool)

    @property
    def view(self) -> CenterTransform:
        """Transform of the images without augmentation."""
        return evaluation_view(self.model.architecture.image_size, self.transform.crop, self.transform.normalization)

    def features(self, source: Source, what: str) -> Features | None:
        """Returns the features of a source, from the cache if it has all of them.

        The cache of rank 0 decides, as each machine may have its own; all ranks compute what is missing.

        Args:
            what: What one of its images is, for display: `training image`.

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
            of = counted(len(source), what)
            self.on_event(Note(f"Features of {of} of '{source.name}' are taken from {self.cache}"))
        else:
            self._compute(source, about | {"layers": own})
            if not world.run_on_rank_zero(lambda: look(own)):
                raise StorageError(f"The features just written to '{self.cache}' read otherwise.", "Check the disk.")
        return found[0] if world.is_rank_zero else None

    def _note(self, source: Source) -> str:
        return note_of(self.named, source.name, len(source))

    def _identity(self, source: Source) -> dict[str, Any]:
        """Returns everything that the features depend on, except the layers."""
        architecture, transform = self.model.architecture, self.transform
        return {
            "weights": self.weights,
            "architecture": {name: _plain(value) for name, value in architecture.as_dict().items()},
            "data": contents_stamp(source),
            "images": len(source),
            **transform.crop.settings(),
            "crop_share": transform.crop.pct(architecture.image_size),
            "normalization": [list(part) for part in transform.normalization],
            "precision": self.compute.precision,
            "device": self.compute.device.type,
            "pool": self.pool if self.norm else f"{self.pool}, no norm",
            "versions": [__version__, torch.__version__, PIL.__version__, DECODING],
        }

    def parts(self, source: Source, view: Transform) -> Iterator[Part]:
        """Computes the features of a source, each rank those of its batches; yields all parts, in order, on all ranks.

        The batches do not depend on the number of ranks, and neither do the features.

        Raises:
            StorageError: They are not finite.
            BeitError: That of any rank, on all.
        """
        world = self.compute.world
        mine = self._own_parts(source, view)
        for _ in range(-(-len(source) // (self.batch_size * world.size))):
            own, failure = next_or_error(mine)
            parts = world.gather((own, failure is not None))
            if any(failed for _, failed in parts):
                world.raise_if_any_failed(failure)
            for part, _ in parts:
                if part is None:
                    continue
                if not np.isfinite(part.features).all():
                    raise StorageError(
                        f"Features in {self.compute.precision} are not finite.",
                        "Give --precision fp32, or another checkpoint.",
                    )
                yield part

    def _own_parts(self, source: Source, view: Transform) -> Iterator[Part]:
        world, device = self.compute.world, self.compute.device
        loaded = ordered_batches(
            source,
            view,
            batch_size=self.batch_size,
            workers=self.workers,
            pin_memory=device.type == "cuda",
            share=(world.rank, world.size),
        )
        with closing(on_device(loaded, device)) as moved:
            for batch, tensors in moved:
                yield self._part(batch, tensors)

    def _part(self, batch: Batch, tensors: Mapping[str, torch.Tensor]) -> Part:
        if not len(batch):
            shape = feature_shape(self.model.architecture, self.pool)
            empty = np.zeros((len(self.layers), 0, *shape), dtype=np.float32)
            return Part(empty, np.zeros(0, dtype=np.int64), [], batch.bad)
        images = normalize(tensors["images"], *self.transform.normalization)
        with torch.inference_mode(), self.compute.autocast():
            features = pooled_features(self.model, images, self.layers, self.pool, self.norm)
        labels = batch.tensors["labels"].numpy() if "labels" in batch.tensors else np.full(len(batch), -1)
        return Part(features.cpu().numpy(), labels, batch.indices, batch.bad)

    def _compute(self, source: Source, about: dict[str, Any]) -> None:
        """Computes the features of all ranks; rank 0 writes them."""
        view = self.view
        writing = (
            FeatureWriter(self.cache, about, self.layers, len(source), self.width, self._note(source))
            if self.compute.world.is_rank_zero
            else nullcontext()
        )
        with writing as writer:
            for part in self.parts(source, view):
                if writer is not None:
                    writer.add(part.features, part.labels, part.indices, part.bad)
                    self.on_event(Progress(f"features of {source.name}", writer.written, len(source), "image"))
            if writer is not None:
                writer.finish()


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value
