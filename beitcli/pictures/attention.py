"""What reference points attend to, in the manner of the paper's Figure 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from beitcli.pictures import colormap
from beitcli.pictures.masks import spread, width_for
from beitcli.pictures.panels import Colour, crisp, grid_of, mark_point

Point = tuple[float, float]
PointMap = tuple[Point, np.ndarray]

_GREY = 0.5  # brightness of the image under a heat map
_ACCENTS: list[Colour] = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)]


def kept_patches(attention: np.ndarray, share: float) -> np.ndarray:
    """The fewest patches that hold a share of the mass.

    Args:
        attention: (h, w), not negative; need not sum to 1.
        share: In (0, 1], as 0.6 in the release.

    Returns:
        (h, w) bool; all False where there is no mass. Of equal patches the upper left ones are kept.

    Raises:
        ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"{share} is no share of the mass")
    flat = np.asarray(attention, dtype=np.float64).reshape(-1)
    order = np.argsort(-flat, kind="stable")
    before = np.cumsum(flat[order]) - flat[order]
    kept = np.zeros(flat.size, dtype=bool)
    kept[order] = (before < (share - 1e-9) * flat.sum()) & (flat[order] > 0)
    return kept.reshape(np.shape(attention))


def heat_overlay(image: Image.Image, attention: np.ndarray, threshold: float | None = None) -> Image.Image:
    """Attention as heat over the darkened grey image, nearest upscaled.

    Args:
        image: RGB, at least one pixel a patch.
        attention: (h, w), not negative; drawn relative to its largest value.
        threshold: Share of the mass in (0, 1]; patches that do not belong to it stay without heat.
    """
    largest = float(attention.max())
    relative = attention / largest if largest != 0 else np.zeros(attention.shape)
    relative = spread(relative, image.size)
    heat = colormap.apply(relative).astype(np.float64)
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * _GREY
    if threshold is None:
        opacity = 0.35 + 0.55 * relative
    else:  # the least of the kept patches must still show
        opacity = np.where(spread(kept_patches(attention, threshold), image.size), 0.6 + 0.3 * relative, 0)
    opacity = opacity[..., None]
    return Image.fromarray(np.rint(grey * (1 - opacity) + heat * opacity).astype(np.uint8))


def attention_panel(
    image: Image.Image,
    maps: Sequence[PointMap],
    threshold: float | None = None,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    min_width: int = 448,
) -> Image.Image:
    """The image with its reference points, then the heat map of each.

    Args:
        image: The view the maps cover.
        maps: For each point its (x, y) in pixels of `image` and its attention, (h, w), not negative.
        threshold: Share of the mass to keep, in (0, 1]; all of it where None.
        columns: Pictures a row; by default at most five, and rows about as long.
        captions: One a map; the points' numbers and pixels by default.
        min_width: Of each picture, in pixels.

    Raises:
        ValueError: No maps, a map that is not (h, w), or captions that do not match.
    """
    if not maps or any(attention.ndim != 2 for _, attention in maps):
        raise ValueError("attention maps must be one or more, each (h, w)")
    if captions is not None and len(captions) != len(maps):
        raise ValueError(f"{len(captions)} captions for {len(maps)} maps")
    marked = crisp(image, max(width_for(image, attention.shape, min_width) for _, attention in maps))
    plain = marked.copy()
    scale = marked.width / image.width
    pictures, texts = [marked], ["reference points"]
    for number, ((x, y), attention) in enumerate(maps, start=1):
        centre = ((x + 0.5) * scale, (y + 0.5) * scale)
        colour = _ACCENTS[(number - 1) % len(_ACCENTS)]
        mark_point(marked, centre, str(number), colour)
        heat = heat_overlay(plain, attention, threshold)
        mark_point(heat, centre, str(number), colour)
        pictures.append(heat)
        kept = "" if threshold is None else f": {threshold:.0%} of the attention"
        texts.append(f"point {number} at {x:g}, {y:g}{kept}" if captions is None else captions[number - 1])
    if columns is None:
        columns = -(-len(pictures) // -(-len(pictures) // 5))
    return grid_of(pictures, columns, captions=texts)
