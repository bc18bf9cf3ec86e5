"""Inference of detectors: one pass per image, resized to fit their size; boxes in pixels of the original image."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch

from beitcli.config.normalization import Normalization
from beitcli.data.annotations.instance_masks import Rle, encoded
from beitcli.data.loading.batches import Batch
from beitcli.data.sources.base import Source
from beitcli.data.sources.detection import DetectionSource
from beitcli.data.transforms.base import normalize
from beitcli.data.transforms.detection import DetectionEvalTransform, LabelledDetectionTransform
from beitcli.engine.detection.metrics import DetectionMetrics, Detections, average_precision
from beitcli.engine.events import Progress
from beitcli.engine.trainer.bad_images import Bad
from beitcli.engine.trainer.distributed_eval import Batching, finish_on_rank_zero
from beitcli.models.networks.timm_dense import AnyDetector
from beitcli.runtime.compute.device import Compute

_WITHIN = 0.5  # minimum probability of a pixel of the object


@dataclass(frozen=True)
class Scored:
    """Result of an evaluation.

    Attributes:
        images: Number of images that were read.
        bad: (index, path, reason) of images that could not be read.
        found: (index, detections) of those that were, without masks.
    """

    metrics: DetectionMetrics
    images: int
    bad: list[Bad]
    found: list[tuple[int, Detections]]


def score(model: AnyDetector, source: DetectionSource, normalization: Normalization, batching: Batching) -> Scored:
    """Returns the average precision of a model in evaluation mode; each readable image counts once, on one rank."""
    world = batching.compute.world
    transform = LabelledDetectionTransform(size=model.architecture.image_size, mean=normalization[0])
    mine: list[tuple[int, Detections]] = []
    bad: list[Bad] = []
    for batch, found in detect(model, source, transform, normalization, batching):
        bad += batch.bad
        mine += zip(batch.indices, found, strict=True)
        seen = min(len(source), len(mine) * world.size)
        batching.on_event(Progress("eval", seen, len(source), "image"))
    everyone = world.gather((mine, bad))
    every = sorted((each for part in everyone for each in part[0]), key=lambda pair: pair[0])

    def metrics() -> DetectionMetrics:
        marked = [source.boxes(index) for index, _ in every]
        return average_precision(marked, [found for _, found in every], model.classes)

    bad = sorted(record for part in everyone for record in part[1])
    boxes = [(index, replace(found, masks=None)) for index, found in every]
    return Scored(finish_on_rank_zero(metrics, world), len(every), bad, boxes)


def detect(
    model: AnyDetector,
    source: Source,
    transform: DetectionEvalTransform,
    normalization: Normalization,
    batching: Batching,
) -> Iterator[tuple[Batch, list[Detections]]]:
    """Yields this rank's batches in order, with the detections in each of their readable images."""
    compute = batching.compute
    for batch, tensors in batching.on_device(source, transform):
        yield batch, detect_batch(model, batch, tensors["images"], normalization, compute) if len(batch) else []


@torch.inference_mode()
def detect_batch(
    model: AnyDetector, batch: Batch, images: torch.Tensor, normalization: Normalization, compute: Compute
) -> list[Detections]:
    """Returns the detections of a model in evaluation mode in a batch of `DetectionEvalTransform`.

    Args:
        images: Those of the batch, on the model's device.
    """
    with compute.autocast():
        detections = model(normalize(images, *normalization))
    contents, sizes = batch.tensors["content"].tolist(), batch.tensors["size"].tolist()
    return [_in_own_pixels(*each) for each in zip(detections, contents, sizes, strict=True)]


def _in_own_pixels(detections: dict[str, torch.Tensor], content: list[int], size: list[int]) -> Detections:
    """Maps boxes from the padded input to the original image; drops those that lie in the padding only."""
    boxes = detections["boxes"].cpu().double()  # MPS has no float64
    by = torch.tensor([size[1] / content[1], size[0] / content[0]]).double().repeat(2)
    most = torch.tensor([size[1], size[0]]).double().repeat(2)
    boxes = torch.minimum(boxes * by, most)
    kept = ((boxes[:, 2:] - boxes[:, :2]) > 0).all(dim=1)
    labels, scores = (detections[name].cpu()[kept].numpy() for name in ("labels", "scores"))
    masks = None
    if "masks" in detections:
        masks = tuple(_runs(*each, size) for each in zip(detections["masks"].cpu()[kept], boxes[kept], strict=True))
    return Detections(boxes[kept].float().numpy(), labels, scores, masks)


def _runs(mask: torch.Tensor, box: torch.Tensor, size: list[int]) -> Rle:
    """Returns a (1, 28, 28) mask of a box as run lengths in the image; one object at a time: 100 of 12 MP take 5 GB."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    pasted = paste_masks_in_image(mask.float().unsqueeze(0), box.float().unsqueeze(0), (size[0], size[1]))
    return encoded(pasted[0, 0].numpy() >= _WITHIN)
