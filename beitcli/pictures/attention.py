"""Attention maps of reference points, in the style of the paper's Figure 2."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from beitcli.pictures import colormap
from beitcli.pictures.masks import spread, width_for
from beitcli.pictures.panels import INK, WHITE, Colour, caption_size, crisp, font_of, grid_of, mark_point

Point = tuple[float, float]
PointMap = tuple[Point, np.ndarray]

_GREY = 0.5  # brightness of the image under a heat map
_SCALE_GREY = 128  # grey level behind the colours of the scale
ACCENTS: list[Colour] = [(0, 114, 178), (230, 159, 0), (0, 158, 115), (204, 121, 167), (86, 180, 233), (213, 94, 0)]


def top_mass_patches(attention: np.ndarray, share: float) -> np.ndarray:
    """Selects the fewest patches that hold a fraction of the attention.

    Args:
        attention: (h, w), non-negative; need not sum to 1.
        share: Fraction in (0, 1]; 0.6 in the release.

    Returns:
        (h, w) bool; all False if the attention is zero. Among equal patches the upper left ones come first.

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


def draw_heatmap(
    image: Image.Image, attention: np.ndarray, threshold: float | None = None, smooth: bool = False
) -> Image.Image:
    """Draws attention as a heat map over the darkened grey image.

    Args:
        image: RGB, at least one pixel per patch.
        attention: (h, w), non-negative; drawn relative to its maximum.
        threshold: Fraction of the attention in (0, 1]; patches beyond it get no heat.
        smooth: Interpolates between the centres of the patches (bicubic), instead of drawing each in one colour.
    """
    largest = float(attention.max())
    relative = np.asarray(attention / largest if largest != 0 else np.zeros(attention.shape), np.float64)
    if threshold is None:
        opacity = 0.2 + 0.7 * relative
    else:  # the weakest kept patch must be visible
        kept = top_mass_patches(attention, threshold)
        opacity = np.where(kept, 0.6 + 0.3 * relative, 0)
        relative = np.where(kept, relative, 0) if smooth else relative
    enlarge = _interpolated if smooth else spread
    heat = colormap.apply(enlarge(relative, image.size)).astype(np.float64)
    grey = np.asarray(image.convert("L"), dtype=np.float64)[..., None] * _GREY
    opacity = enlarge(opacity, image.size)[..., None]
    return Image.fromarray(np.rint(grey * (1 - opacity) + heat * opacity).astype(np.uint8))


def _interpolated(patch_values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Enlarges (h, w) in [0, 1] to (height, width) in [0, 1]."""
    picture = Image.fromarray(patch_values.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(picture, np.float64).clip(0, 1)


def add_colorbar(
    heat: Image.Image, attention: np.ndarray | None, threshold: float | None = None, words: str = ""
) -> Image.Image:
    """Adds a colour scale below a heat map, with a mark at uniform attention (1/N for N patches).

    Args:
        heat: RGB, from `draw_heatmap`.
        attention: (h, w), fractions of the attention; None for an image without a map, which gets white of the same
            height.
        threshold: That of the heat map; the scale has no colour below the weakest kept patch.
        words: Below an image without a map, as near as a scale is.
    """
    size = caption_size(heat.width)
    font, line, thick = font_of(size), round(1.6 * size), max(8, heat.width // 32)
    picture = Image.new("RGB", (heat.width, heat.height + 2 * line + thick), WHITE)
    picture.paste(heat, (0, 0))
    draw, top = ImageDraw.Draw(picture), heat.height + line
    if attention is None:
        draw.text((heat.width / 2, heat.height + 0.875 * size), words, INK, font, anchor="mm")
        return picture
    picture.paste(_scale(attention, threshold, (heat.width, thick)), (0, top))
    largest, uniform = float(attention.max()), 1 / attention.size
    said, x = f"uniform 1/{attention.size} = {percent(uniform)}", heat.width - 1
    if uniform <= largest:
        x = round(x * uniform / largest)
        draw.line((x, top - size // 4, x, top + thick - 1), WHITE, 5)
        draw.line((x, top - size // 4, x, top + thick - 1), INK, 2)
    else:
        said += ", off this scale"
    half = font.getlength(said) / 2
    draw.text((max(half, min(x, heat.width - half)), top - 0.9 * size), said, INK, font, anchor="mm")
    draw.text((0, top + thick + 0.7 * size), "0", INK, font, anchor="lm")
    draw.text((heat.width, top + thick + 0.7 * size), f"max {percent(largest)}", INK, font, anchor="rm")
    return picture


def _scale(attention: np.ndarray, threshold: float | None, size: tuple[int, int]) -> Image.Image:
    """Draws the colours from 0 to the maximum, left to right."""
    shares = np.linspace(0, float(attention.max()), size[0])[None]
    plain = Image.new("RGB", size, (_SCALE_GREY,) * 3)
    if threshold is None:
        return draw_heatmap(plain, shares)
    scale = draw_heatmap(plain, shares, 1.0)
    kept = attention[top_mass_patches(attention, threshold)]
    below = int(np.searchsorted(shares[0], kept.min())) if kept.size else size[0]
    scale.paste(draw_heatmap(plain, np.zeros((1, 1)), 1.0).crop((0, 0, below, size[1])), (0, 0))
    return scale


def percent(share: float) -> str:
    """Writes a share (0-1) in per cent with three significant digits, and at most six decimals, as the page does."""
    value = float(f"{100 * share:.3g}")
    decimals = 2 - math.floor(math.log10(value)) if value > 0 else 2
    return f"{value:.{min(6, max(0, decimals))}f}%"


def pixel_text(point: Point) -> str:
    """Says where a point is, in pixels of the upright image."""
    return f"pixel {point[0]:g}, {point[1]:g}"


def attention_panel(
    image: Image.Image,
    maps: Sequence[PointMap],
    threshold: float | None = None,
    columns: int | None = None,
    captions: Sequence[str] | None = None,
    min_width: int = 448,
    smooth: bool = False,
) -> Image.Image:
    """Draws the image with its reference points, then the heat map and the scale of each point.

    Args:
        image: The crop that the maps cover.
        maps: For each point its (x, y) in pixels of `image` and its attention, (h, w), non-negative.
        threshold: Fraction of the attention to show, in (0, 1]; None for all.
        columns: Pictures per row; default at most five, in rows of similar length.
        captions: One per map; default the number and pixel of the point.
        min_width: Minimum width of each picture, in pixels.
        smooth: Whether the heat is interpolated between patches.

    Raises:
        ValueError: No maps, a map that is not (h, w), or a wrong number of captions.
    """
    if not maps or any(attention.ndim != 2 for _, attention in maps):
        raise ValueError("attention maps must be one or more, each (h, w)")
    if captions is not None and len(captions) != len(maps):
        raise ValueError(f"{len(captions)} captions for {len(maps)} maps")
    marked = crisp(image, max(width_for(image, attention.shape, min_width) for _, attention in maps))
    plain = marked.copy()
    scale = marked.width / image.width
    pictures, texts = [], [""]
    for number, ((x, y), attention) in enumerate(maps, start=1):
        centre = ((x + 0.5) * scale, (y + 0.5) * scale)
        colour = ACCENTS[(number - 1) % len(ACCENTS)]
        mark_point(marked, centre, str(number), colour)
        heat = draw_heatmap(plain, attention, threshold, smooth)
        mark_point(heat, centre, str(number), colour)
        pictures.append(add_colorbar(heat, attention, threshold))
        kept = "" if threshold is None else f": {threshold:.0%} of the attention"
        texts.append(f"point {number} at {pixel_text((x, y))}{kept}" if captions is None else captions[number - 1])
    pictures.insert(0, add_colorbar(marked, None, words="reference points"))
    if columns is None:
        columns = -(-len(pictures) // -(-len(pictures) // 5))
    return grid_of(pictures, columns, captions=texts)
