"""How well does the attention of a point inside an object separate the object? IoU at the best threshold.

    python benchmarks/paper_tables/attention_iou.py MODEL DATA --limit N --seed 0 --device cpu

DATA/val/images and DATA/val/masks hold pictures and index masks of the same names but for their endings. Each image is
cut to its central square, the mask to one class a patch, the most frequent one. Objects are patches of one class that
touch along their sides: three or more, half of the grid at most. The point is the middle of the object's patch nearest
to its centroid. Prints JSON: `iou`, of the attention of the last block, mean of the heads, and `iou_distance`, of
nearness to the point, both the mean over the objects of each one's IoU at the threshold that suits it best: it is
chosen with the object known, so both are upper bounds. --seed is that of random weights (MODEL@random).
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

LEAST, IGNORED = 3, 11


def objects_of(labels: np.ndarray) -> list[np.ndarray]:
    """Returns the objects of a grid.

    Args:
        labels: (h, w) classes of the patches.

    Returns:
        (h, w) bool each, in reading order.
    """
    seen, found = np.zeros(labels.shape, bool), []
    for start in np.ndindex(labels.shape):
        if seen[start]:
            continue
        region, waiting = np.zeros(labels.shape, bool), [start]
        while waiting:
            row, column = waiting.pop()
            is_inside = 0 <= row < labels.shape[0] and 0 <= column < labels.shape[1]
            if is_inside and not region[row, column] and labels[row, column] == labels[start]:
                region[row, column] = True
                waiting += [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
        seen |= region
        if labels[start] != IGNORED and LEAST <= region.sum() <= labels.size // 2:
            found.append(region)
    return found


def middle_of(region: np.ndarray) -> tuple[int, int]:
    """Returns the patch of a region, (row, column), that is nearest to the region's centroid."""
    patches = np.argwhere(region)
    row, column = patches[((patches - patches.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    return int(row), int(column)


def best_iou(scores: np.ndarray, region: np.ndarray) -> float:
    """Returns the highest intersection over union of `region` and {scores >= threshold}, over all thresholds."""
    shown = [scores >= threshold for threshold in np.unique(scores)]
    return max(float((each & region).sum() / (each | region).sum()) for each in shown)


def patch_classes(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the most frequent class of each patch, (h, w), of a mask (H, W)."""
    rows = np.array_split(np.arange(mask.shape[0]), grid[0])
    columns = np.array_split(np.arange(mask.shape[1]), grid[1])
    return np.array([[np.bincount(mask[np.ix_(row, column)].ravel()).argmax() for column in columns] for row in rows])


def central_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, upper, left + side, upper + side))


def measure(model_name: str, data: Path, limit: int, device: str, seed: int = 0) -> dict[str, float | int]:
    """Returns the means over all objects of the first `limit` images."""
    import beitcli
    from beitcli.models.checkpoints.build import backbone_of
    from beitcli.models.checkpoints.open import open_model

    model = beitcli.load_model(model_name, device=device, progress=False)
    if model_name.endswith("@random"):  # `load_model` has no seed
        network, _ = backbone_of(open_model(model_name, seed=seed))
        model.network.load_state_dict(network.state_dict())
    grid = tuple(model.architecture.grid)
    masks = {file.stem: file for file in sorted((data / "val" / "masks").iterdir())}
    attention, distance = [], []
    for file in sorted((data / "val" / "images").iterdir())[:limit]:
        with Image.open(file) as picture, Image.open(masks[file.stem]) as classes:
            image, mask = central_square(picture.convert("RGB")), np.asarray(central_square(classes))
        found = objects_of(patch_classes(mask, grid))
        if not found:
            continue
        middles = [middle_of(region) for region in found]
        side = image.width
        points = [(int((c + 0.5) * side / grid[1]), int((r + 0.5) * side / grid[0])) for r, c in middles]
        maps = model.attention(image, points=points)["maps"]
        for region, (row, column), each in zip(found, middles, maps, strict=True):
            if tuple(each["patch"]) != (row, column):
                raise ValueError(f"'{file}': the point of patch {(row, column)} is in {each['patch']}.")
            rows, columns = np.indices(grid)
            attention.append(best_iou(np.asarray(each["attention"]), region))
            distance.append(best_iou(-np.hypot(rows - row, columns - column), region))
    return {"iou": float(np.mean(attention)), "iou_distance": float(np.mean(distance)), "objects": len(attention)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data", type=Path)
    parser.add_argument("--limit", type=int, default=1000, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of random weights")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", action="store_true", help="always")
    parser.add_argument("--quiet", action="store_true", help="always")
    given = parser.parse_args()
    sys.stdout.write(json.dumps(measure(given.model, given.data, given.limit, given.device, given.seed)) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
