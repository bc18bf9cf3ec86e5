"""A small data set in COCO's format: coloured rectangles on gray, and their boxes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("blue", "red")
COLOURS = {"blue": (30, 50, 230), "red": (230, 40, 30)}
SHAPE = (40, 48)


def save_rectangles(root: Path, split: str, count: int, seed: int) -> Path:
    """Writes ROOT/SPLIT/*.png and ROOT/annotations/instances_SPLIT.json; returns the latter. The last image has no box.

    Categories have the ids 3 (blue) and 7 (red), in reverse order in the file.
    """
    rng = np.random.default_rng(seed)
    height, width = SHAPE
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    (root / split).mkdir(parents=True, exist_ok=True)
    for number in range(count):
        pixels = np.clip(rng.normal(120, 10, (*SHAPE, 3)), 0, 255).astype(np.uint8)
        for place, name in enumerate(rng.permutation(NAMES)[: 1 + number % 2] if number + 1 < count else ()):
            w, h = (int(side) for side in rng.integers(12, 20, 2))
            x, y = int(rng.integers(place * 24, place * 24 + 24 - min(w, 20) + 1)), int(rng.integers(height - h))
            x = min(x, width - w)
            pixels[y : y + h, x : x + w] = COLOURS[name]
            annotations.append(
                {
                    "id": 100 * (seed + 1) + len(annotations),
                    "image_id": 10 + number,
                    "category_id": {"blue": 3, "red": 7}[name],
                    "bbox": [x, y, w, h],
                    "area": w * h,
                    "iscrowd": 0,
                    "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                }
            )
        Image.fromarray(pixels).save(root / split / f"{number:02d}.png")
        images.append({"id": 10 + number, "file_name": f"{number:02d}.png", "width": width, "height": height})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
    file = root / "annotations" / f"instances_{split}.json"
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
    return file


def changed(file: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Applies `change` to a JSON file, in place."""
    document = json.loads(file.read_text())
    change(document)
    file.write_text(json.dumps(document))
