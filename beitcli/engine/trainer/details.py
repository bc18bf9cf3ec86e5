"""RUN/evaluation.json: what the report says of the last measuring beyond the metrics, with small pictures in it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from PIL import Image

from beitcli.data.sources.base import Source
from beitcli.errors import BadImage, DataError
from beitcli.pictures.page_file import image_url

SHOWN = 24  # pictures at most
_SIDE = 128  # pixels
_QUALITY = 80
_PAIRS = 10_000  # confused pairs of classes at most, of the most frequent


def small_picture(image: Image.Image, side: int = _SIDE) -> str:
    """Returns an image within so many pixels a side as a `data:` URL."""
    image.thumbnail((side, side))
    return image_url(image, quality=_QUALITY)


def _plain(index: int, image: Image.Image) -> dict[str, str]:
    return {"picture": small_picture(image)}


def pictures_of(
    source: Source,
    chosen: Iterable[tuple[int, dict[str, Any]]],
    draw: Callable[[int, Image.Image], dict[str, str]] = _plain,
    most: int = SHOWN,
) -> list[dict[str, Any]]:
    """Returns the facts of images with their path and a small picture, without those that cannot be read any more.

    Args:
        chosen: (index in the source, facts), the worst first.
        draw: Maps index and image to the pictures, `data:` URLs by name.
        most: Images at most.
    """
    shown = []
    for index, facts in chosen:
        try:
            image = source.image(index)
        except (BadImage, DataError, OSError):
            continue
        shown.append({"path": source.path(index), **facts, **draw(index, image)})
        if len(shown) == most:
            break
    return shown


def classification_details(classes: Sequence[str], records: np.ndarray, source: Source) -> dict[str, Any]:
    """Returns counts of (class, predicted class) and the worst mistakes.

    Args:
        records: (n, 4) float64, a row an image: its index, its class, the predicted class, and that one's probability.
    """
    truth, predicted = records[:, 1].astype(int), records[:, 2].astype(int)
    pairs, counts = np.unique(np.stack((truth, predicted)), axis=1, return_counts=True)
    confusion = [[int(t), int(p), int(count)] for (t, p), count in zip(pairs.T, counts, strict=True)]
    right = [entry for entry in confusion if entry[0] == entry[1]]
    wrong = sorted((entry for entry in confusion if entry[0] != entry[1]), key=lambda entry: -entry[2])
    mistakes = records[truth != predicted]
    mistakes = mistakes[np.lexsort((mistakes[:, 0], -mistakes[:, 3]))]
    facts = (
        (int(i), {"class": classes[int(t)], "predicted": classes[int(p)], "probability": round(float(share), 4)})
        for i, t, p, share in mistakes
    )
    return {
        "task": "classify",
        "classes": list(classes),
        "images": len(records),
        "labelled": np.bincount(truth, minlength=len(classes)).tolist(),
        "predicted": np.bincount(predicted, minlength=len(classes)).tolist(),
        "confusion": right + wrong[:_PAIRS],
        "worst": pictures_of(source, facts),
    }
