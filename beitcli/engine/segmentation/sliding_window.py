"""Sliding-window inference of segmenters, optionally at several scales and flipped, at the original image size.

As in the release: the logits of overlapping windows are averaged and resized (bilinear) to the image before the argmax;
over several scales and flips, probabilities are averaged.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F

from beitcli.config.normalization import Normalization
from beitcli.data.loading.batches import Batch
from beitcli.data.sources.base import Source
from beitcli.data.transforms.base import normalize
from beitcli.data.transforms.segmentation import LabelledSegmentationTransform, SegmentationEvalTransform
from beitcli.engine.events import Progress
from beitcli.engine.segmentation.metrics import ConfusionMetrics, confusion, metrics_of
from beitcli.engine.segmentation.mistakes import Mistaken, Mistakes
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.distributed_eval import Batching
from beitcli.errors import UsageError
from beitcli.heads.convolution import resize_map
from beitcli.models.networks.timm_dense import AnySegmenter
from beitcli.runtime.compute.device import Compute

SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75)  # of --multi-scale, as in the release
_NUMBERS_AT_ONCE = 1 << 26  # logits resized at a time: 256 MB


@dataclass(frozen=True, kw_only=True)
class SlidingWindow:
    """Settings of sliding-window inference.

    Attributes:
        short_side: Short side of the image at scale 1, in pixels; 0 for its original size.
        stride: Stride of the windows, (down, across) in pixels; the windows have the model's size.
        least: (H, W) that no scale goes below, in pixels.
        flip: Whether to average with the flipped image.
        windows_at_once: Number of windows per forward pass.
    """

    normalization: Normalization
    short_side: int
    stride: tuple[int, int]
    scales: tuple[float, ...] = (1.0,)
    least: tuple[int, int] = (0, 0)
    flip: bool = False
    windows_at_once: int = 16


def sliding(
    window: tuple[int, int],
    *,
    normalization: Normalization,
    short_side: int,
    stride: int | None = None,
    multi_scale: bool = False,
    flip: bool = False,
    windows_at_once: int = 16,
) -> SlidingWindow:
    """Returns the settings, by default with the release's stride: 2/3 of the window, 341 for 512 and 426 for 640."""
    strides = (stride, stride) if stride else tuple(max(1, side * 2 // 3) for side in window)
    if stride and stride > min(window):
        raise UsageError(f"--stride {stride} is more than the window's {min(window)} pixels.", "Give at most that.")
    return SlidingWindow(
        normalization=normalization,
        short_side=short_side,
        stride=(strides[0], strides[1]),
        scales=SCALES if multi_scale else (1.0,),
        least=window if multi_scale else (0, 0),
        flip=flip,
        windows_at_once=windows_at_once,
    )


@dataclass
class Counts:
    """Results that add up over batches and ranks.

    Attributes:
        confusion: (classes, classes) int64, labelled x predicted.
        images: Number of images that were read.
        bad: (index, path, reason) of images that could not be read.
        worst: Images with the most mistakes.
    """

    confusion: torch.Tensor
    images: int
    bad: list[Bad]
    worst: list[Mistaken] = field(default_factory=list)

    @property
    def metrics(self) -> ConfusionMetrics:
        return metrics_of(self.confusion)


def count(model: AnySegmenter, source: Source, how: SlidingWindow, batching: Batching) -> Counts:
    """Returns the confusion matrix over every readable image of a source with label maps.

    Args:
        batching: With a batch size of 1.
    """
    world = batching.compute.world
    counts = Counts(torch.zeros(model.classes, model.classes, dtype=torch.int64), 0, [])
    mistakes = Mistakes()
    transform = LabelledSegmentationTransform(short_side=how.short_side, scales=how.scales, least=how.least)
    for batch, predicted in segment(model, source, transform, how, batching):
        counts.bad += batch.bad
        if predicted is not None:
            targets = batch.tensors["targets"][0].to(predicted.device)
            own = confusion(predicted, targets, model.classes).cpu()
            counts.confusion += own
            counts.images += 1
            mistakes.add(batch.indices[0], own, targets, predicted)
            seen = min(len(source), counts.images * world.size)
            batching.on_event(Progress("eval", seen, len(source), "image"))
    parts = world.gather((counts.confusion, counts.images, counts.bad, mistakes.worst))
    bad = sorted(record for part in parts for record in part[2])
    worst = [image for part in parts for image in part[3]]
    return Counts(sum(part[0] for part in parts), sum(part[1] for part in parts), bad, worst)


def segment(
    model: AnySegmenter, source: Source, transform: SegmentationEvalTransform, how: SlidingWindow, batching: Batching
) -> Iterator[tuple[Batch, torch.Tensor | None]]:
    """Yields this rank's batches of one image, in order, with its (H, W) int64 classes; None for an unreadable one."""
    for batch in batching.batches(source, transform):
        yield batch, classes_of(model, batch, how, batching.compute) if len(batch) else None


@torch.inference_mode()
def classes_of(model: AnySegmenter, batch: Batch, how: SlidingWindow, compute: Compute) -> torch.Tensor:
    """Returns (H, W) int64 classes for a batch of one image, at its original size."""
    height, width = batch.tensors["size"][0].tolist()
    looks = [
        normalize(batch.tensors[f"images_{number}"].to(compute.device), *how.normalization)
        for number in range(len(how.scales))
    ]
    if len(looks) == 1 and not how.flip:
        return _most_likely(window_logits(model, looks[0], how, compute), (height, width))
    total: torch.Tensor | None = None
    for images in looks:
        for mirrored in (False, True)[: 1 + how.flip]:
            logits = window_logits(model, images.flip(-1) if mirrored else images, how, compute)
            logits = logits.flip(-1) if mirrored else logits
            likely = resize_map(logits, (height, width)).softmax(dim=1)
            total = likely if total is None else total.add_(likely)
    assert total is not None
    return total[0].argmax(dim=0)


def window_logits(model: AnySegmenter, images: torch.Tensor, how: SlidingWindow, compute: Compute) -> torch.Tensor:
    """Maps (1, 3, h, w), normalized, to (1, classes, h, w) fp32: the mean over the windows that contain a pixel.

    An image smaller than the window is padded on the right and below with the mean colour; the padding is cut off
    again.
    """
    window = model.architecture.image_size
    height, width = images.shape[-2:]
    padded = F.pad(images, (0, max(0, window[1] - width), 0, max(0, window[0] - height)))
    corners = [
        (upper, left)
        for upper in window_starts(padded.shape[-2], window[0], how.stride[0])
        for left in window_starts(padded.shape[-1], window[1], how.stride[1])
    ]
    total = padded.new_zeros(1, model.classes, *padded.shape[-2:])
    seen = padded.new_zeros(1, 1, *padded.shape[-2:])
    for first in range(0, len(corners), how.windows_at_once):
        some = corners[first : first + how.windows_at_once]
        pieces = [padded[..., upper : upper + window[0], left : left + window[1]] for upper, left in some]
        with compute.autocast():
            logits = model(torch.cat(pieces))[0]
        for (upper, left), piece in zip(some, resize_map(logits.float(), window), strict=True):
            total[0, :, upper : upper + window[0], left : left + window[1]] += piece
            seen[0, :, upper : upper + window[0], left : left + window[1]] += 1
    return (total / seen)[..., :height, :width]


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """Returns the starts of windows that cover `length`; the last window ends with it."""
    number = -(-max(0, length - window) // stride) + 1
    return [min(place * stride, length - window) for place in range(number)]


def _most_likely(logits: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Returns the argmax of (1, classes, h, w) at another size, (H, W); in parts, as 150 x 12 megapixels take 7 GB."""
    at_once = max(1, _NUMBERS_AT_ONCE // (size[0] * size[1]))
    best = logits.new_full(size, -torch.inf)
    chosen = torch.zeros(size, dtype=torch.int64, device=logits.device)
    for first in range(0, logits.shape[1], at_once):
        values, places = resize_map(logits[:, first : first + at_once], size)[0].max(dim=0)
        better = values > best
        best, chosen = torch.where(better, values, best), torch.where(better, places + first, chosen)
    return chosen
