"""evaluation.json of a segmenter: pixels of each class and confusion, the worst images with labels and prediction.

The commonest confusion of an image is the pair (labelled, predicted) with the most wrong pixels. First come the images
that are the worst of those with their commonest confusion, then the second worst of each: neighbouring frames of a
video, which are nearly one picture, mostly confuse the same classes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image

from beitcli.data.annotations.label_maps import IGNORED
from beitcli.data.sources.segmentation import SegmentationSource
from beitcli.engine.report.classes import MATRIX
from beitcli.engine.trainer.details import pictures_of, small_picture
from beitcli.pictures.palette import class_colours
from beitcli.pictures.segmentation import is_background, tinted

_SHOWN = 12  # images at most, each three times
_KEPT = 2 * _SHOWN  # some may not be readable any more
_SIDE, _LEAST_SIDE = 320, 160  # pixels, the longer side; smaller images are enlarged by a whole factor
_PAIRS = 24  # most confused pairs of classes


@dataclass(frozen=True)
class Mistaken:
    """An image with wrong pixels.

    Attributes:
        index: In the source.
        right: Share of its labelled pixels that are right.
        confused: The labelled and the predicted class of most of its wrong pixels.
        wrong: Share of its labelled pixels with that confusion.
        labels: (h, w) uint8, its labels at 320 pixels a side or less.
        predicted: (h, w) uint8, the predicted classes likewise.
    """

    index: int
    right: float
    confused: tuple[int, int]
    wrong: float
    labels: np.ndarray
    predicted: np.ndarray


@dataclass
class Mistakes:
    """The worst images of an evaluation, as many as are needed."""

    worst: list[Mistaken] = field(default_factory=list)

    def add(self, index: int, counts: torch.Tensor, labels: torch.Tensor, predicted: torch.Tensor) -> None:
        """Adds an image, unless it has no labelled or no wrong pixel.

        Args:
            counts: (classes, classes) int64 pixels of this image, labelled x predicted.
            labels: (H, W), IGNORED where there is no label.
            predicted: (H, W) classes.
        """
        labelled, right = int(counts.sum()), int(counts.diagonal().sum())
        if right == labelled:
            return
        wrong = counts - counts.diagonal().diag()
        most = int(wrong.argmax())
        small = (_small(labels), _small(predicted))
        confused = (most // len(counts), most % len(counts))
        self.worst.append(Mistaken(index, right / labelled, confused, int(wrong.max()) / labelled, *small))
        if len(self.worst) >= 4 * _KEPT:
            self.worst = in_order(self.worst)[:_KEPT]


def in_order(images: Sequence[Mistaken]) -> list[Mistaken]:
    """Returns the worst image of each commonest confusion, then the second worst of each, and so on."""
    seen: Counter[tuple[int, int]] = Counter()
    placed = []
    for image in sorted(images, key=lambda each: (each.right, each.index)):
        placed.append((seen[image.confused], image.right, image.index, image))
        seen[image.confused] += 1
    return [image for *_, image in sorted(placed, key=lambda each: each[:3])]


def _small(classes: torch.Tensor) -> np.ndarray:
    """Returns every n-th pixel of (H, W), at most 320 a side, as uint8."""
    every = -(-max(classes.shape) // _SIDE)
    return classes[::every, ::every].to(torch.uint8).cpu().numpy()


def segmentation_details(
    classes: Sequence[str], counts: np.ndarray, worst: Sequence[Mistaken], source: SegmentationSource
) -> dict[str, Any]:
    """Returns pixels of each class and of each confusion, and the worst images, drawn, with a legend.

    Args:
        counts: (classes, classes) int64 pixels, labelled x predicted.
        worst: Images of the source.
    """
    hits = counts.diagonal()
    wrong = counts - np.diag(hits)
    order = np.argsort(-wrong, axis=None, kind="stable")[:_PAIRS]
    pairs = [(int(place) // len(classes), int(place) % len(classes)) for place in order]
    by_value = source.rule.names_of_values(classes)
    chosen = in_order(worst)
    maps = {image.index: image for image in chosen}

    def draw(index: int, image: Image.Image) -> dict[str, str]:
        own = maps[index]
        factor = max(1, _LEAST_SIDE // max(own.labels.shape))
        height, width = (factor * side for side in own.labels.shape)
        pixels = image.convert("RGB").resize((width, height), Image.Resampling.BICUBIC, reducing_gap=2)
        drawn = [pixels]
        for labels in (own.labels, own.predicted):
            values = np.where(labels == IGNORED, labels, source.rule.to_values(labels))
            values = values.repeat(factor, axis=0).repeat(factor, axis=1)
            drawn.append(tinted(np.asarray(pixels), values, by_value))
        image_url, labelled, predicted = (small_picture(each, _SIDE) for each in drawn)
        return {"image": image_url, "labelled": labelled, "picture": predicted}

    facts = (
        (
            each.index,
            {
                "pixel_accuracy": round(each.right, 4),
                "class": classes[each.confused[0]],
                "predicted": classes[each.confused[1]],
                "confused": round(each.wrong, 4),
            },
        )
        for each in chosen
    )
    return {
        "task": "segment",
        "classes": list(classes),
        "labelled": counts.sum(axis=1).tolist(),
        "predicted": counts.sum(axis=0).tolist(),
        "hits": hits.tolist(),
        "confusion": [[t, p, int(wrong[t, p])] for t, p in pairs if wrong[t, p]],
        **({"matrix": counts.tolist()} if len(classes) <= MATRIX else {}),
        "legend": _legend(by_value, chosen[:_SHOWN]),
        "worst": pictures_of(source, facts, draw, _SHOWN),
    }


def _legend(by_value: Mapping[int, str], shown: Sequence[Mistaken]) -> list[dict[str, Any]]:
    """Returns name and colour, `#rrggbb`, of the classes in some images; a background has none, as it is not tinted."""
    found = {int(label) for image in shown for labels in (image.labels, image.predicted) for label in np.unique(labels)}
    keys: list[dict[str, Any]] = []
    for label, (value, name) in enumerate(by_value.items()):
        if label in found:
            keys.append({"class": name, "colour": None if value == 0 and is_background(name) else _hex(value)})
    return [*keys, {"class": "no class", "colour": _hex(IGNORED), "hatched": True}] if IGNORED in found else keys


def _hex(value: int) -> str:
    return "#{:02x}{:02x}{:02x}".format(*class_colours()[value].tolist())
