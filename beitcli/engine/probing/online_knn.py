"""`pretrain --probe LABELLED`: k-NN accuracy of the features during training, where held-out images are measured.

    probe_top1 = top-1 of the 20 nearest neighbours, block round(0.75 depth), standardized features

The paper's best block of BEiT-B is the 9th of 12, not the last. A few hundred images are decoded once and kept as
pixels: a save costs a forward pass of each. No random numbers are drawn, and nothing that training reads is changed.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from beitcli.config.intensity import FULL, IntensityRange
from beitcli.config.normalization import Normalization
from beitcli.data.caches.feature_cache import Features
from beitcli.data.loading.batches import ordered_batches
from beitcli.data.loading.sampler import select_limit, split_holdout
from beitcli.data.sources.base import Source
from beitcli.data.sources.format import Request
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.splits import has_train_and_val
from beitcli.data.sources.subset import Subset
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine.events import Note, OnEvent, openings
from beitcli.engine.probing.knn import Vote, knn_counts
from beitcli.errors import DataError
from beitcli.models.networks.pooled_features import SupportsBlockOutputs, pooled_features
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.metric_text import none_of

_IMAGES = 600  # in total, balanced over the classes
_SHARE = 5  # a fifth of these images is for validation
_NEIGHBOURS, _TEMPERATURE = 20, 0.07
BATCH = 64  # images per forward pass
Part = tuple[torch.Tensor, np.ndarray]  # (n, 3, H, W) uint8 images and (n,) int64 labels


class OnlineProbe:
    """Labelled images in memory, and the k-NN accuracy of features on them.

    Args:
        reference: DATA with labels; its `train` and `val` splits if it has them, else a fifth is held out.
        size: (H, W) of the images in pixels.
        seed: Seed of the choice of images.

    Raises:
        DataError: It has no labels, fewer than two classes, or no readable image.
    """

    def __init__(
        self,
        reference: str,
        size: tuple[int, int],
        normalization: Normalization,
        seed: int,
        compute: Compute,
        on_event: OnEvent,
        intensity: IntensityRange = FULL,
    ) -> None:
        self.normalization, self.compute = normalization, compute

        def read() -> tuple[tuple[Source, Part], tuple[Source, Part]]:
            train, val = _parts(reference, size, seed, intensity, on_event)
            return (train, _read(train, size)), (val, _read(val, size))

        (train, self.train), (val, self.val) = compute.world.rank_zero_first(read)  # which downloads, where need be
        self.classes = train.classes or ()
        column = {name: number for number, name in enumerate(self.classes)}
        to_train = np.array([column.get(name, -1) for name in val.classes or ()], dtype=np.int64)
        self.targets = torch.from_numpy(to_train[self.val[1]])
        on_event(Note(f"Probe, to watch only: {len(self.targets)} images by {len(self.train[1])} of '{reference}'"))

    @property
    def images(self) -> int:
        return len(self.train[1]) + len(self.val[1])

    @torch.no_grad()
    def top1(self, model: SupportsBlockOutputs, at_once: int = BATCH) -> float:
        """Returns the share of correctly classified images (0-1), of a model in evaluation mode.

        Args:
            at_once: Images per forward pass.
        """
        depth = model.architecture.depth
        layer = max(1, round(0.75 * depth))
        train, val = (self._features(model, part, layer, at_once) for part in (self.train, self.val))
        standard = {layer: train.moments(layer)}
        train, val = (replace(each, standard=standard) for each in (train, val))
        vote = Vote(_NEIGHBOURS, len(self.classes), _TEMPERATURE, self.compute.device)
        return knn_counts(train, val, self.targets, layer, vote).top1

    def _features(self, model: SupportsBlockOutputs, part: Part, layer: int, at_once: int) -> Features:
        images, labels = part
        found = []
        for begin in range(0, len(images), at_once):
            batch = normalize(images[begin : begin + at_once].to(self.compute.device), *self.normalization)
            with self.compute.autocast():
                found.append(pooled_features(model, batch, [layer])[0].cpu().numpy())
        return Features({layer: np.concatenate(found)}, labels, np.arange(len(labels)), [])


def _parts(
    reference: str, size: tuple[int, int], seed: int, intensity: IntensityRange, on_event: OnEvent
) -> tuple[Source, Source]:
    request = Request(labelled=True, sample_size=max(size), intensity=intensity, on_progress=openings(on_event))
    train = open_data([reference], request)

    def some(source: Source, count: int) -> Source:
        chosen = np.sort(select_limit(source, count, seed)) if count < len(source) else np.arange(len(source))
        return Subset(source, chosen)

    if has_train_and_val(train.splits):
        val = open_data([reference], request, role="eval")
        return some(train, _IMAGES * (_SHARE - 1) // _SHARE), some(val, _IMAGES // _SHARE)
    few = some(train, _IMAGES)
    kept, held_out = split_holdout(few, max(1, len(few) // _SHARE), seed)
    return Subset(few, kept), Subset(few, held_out)


def _read(source: Source, size: tuple[int, int]) -> Part:
    batches = [b for b in ordered_batches(source, evaluation_view(size), batch_size=BATCH, workers=0) if len(b)]
    if not batches:
        raise DataError(
            f"--probe: {none_of(len(source), 'image', source.name, 'can be read', 'cannot be read')}.",
            "`beit doctor DATA` says why of each.",
        )
    return torch.cat([b.tensors["images"] for b in batches]), torch.cat([b.tensors["labels"] for b in batches]).numpy()
