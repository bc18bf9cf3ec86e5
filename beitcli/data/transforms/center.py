"""Center crops of Pillow images at a size, without torch: also what is shown of an image."""

from __future__ import annotations

import numpy as np
from PIL import Image

from beitcli.config.eval_crop import margin

Size = int | tuple[int, int]  # (H, W) in pixels, or the side of a square


def height_and_width(size: Size) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    return height, width


def to_array(image: Image.Image) -> np.ndarray:
    """(3, H, W) uint8."""
    return np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1))


def center_box(
    width: int, height: int, size: Size, crop_pct: float = 1.0, *, rounds_down: bool = False, as_timm: bool = False
) -> tuple[float, float, float, float]:
    """Returns the center crop (left, upper, right, lower), in pixels of the original image.

    Equivalent to a resize to the smallest size that covers size / crop_pct pixels and a center crop of `size`, mapped
    back to the original image. Sides and offset are rounded as by torchvision's Resize and CenterCrop, which the
    release and timm use.

    Args:
        rounds_down: Rounds the offset as transformers does.
        as_timm: Rounds the sides as timm does for crops that are not square.
    """
    target = height_and_width(size)
    covered = [(max(to, int(to / crop_pct)), side) for side, to in zip((height, width), target, strict=True)]
    numerator, denominator = max(covered, key=lambda pair: pair[0] / pair[1])  # the scale, exactly

    def span(side: int, to: int) -> tuple[float, float]:
        resized = max(to, round(side * numerator / denominator) if as_timm else side * numerator // denominator)
        before = margin(resized, to, rounds_down)
        return before * side / resized, (before + to) * side / resized

    (upper, lower), (left, right) = span(height, target[0]), span(width, target[1])
    return left, upper, right, lower


def fit_center(
    image: Image.Image,
    size: Size,
    crop_pct: float = 1.0,
    filter: int = Image.Resampling.BICUBIC,
    **rounding: bool,
) -> Image.Image:
    """Returns the center crop at `size`. Only the crop is resized, so a long image costs no more.

    Args:
        rounding: As of `center_box`.
    """
    height, width = height_and_width(size)
    return image.resize((width, height), filter, center_box(*image.size, size, crop_pct, **rounding))


def fit_squashed(
    image: Image.Image, size: Size, resized: tuple[int, int], filter: int, rounds_down: bool = False
) -> Image.Image:
    """Returns the center crop at `size` of the image resized to exactly `resized` (H, W), its shape not kept."""
    height, width = height_and_width(size)
    upper, left = margin(resized[0], height, rounds_down), margin(resized[1], width, rounds_down)
    down, across = image.height / resized[0], image.width / resized[1]
    box = (left * across, upper * down, (left + width) * across, (upper + height) * down)
    return image.resize((width, height), filter, box)


def fit_bordered(
    image: Image.Image, size: Size, bound: tuple[int, int], filter: int, fill: tuple[int, ...]
) -> Image.Image:
    """Returns the whole image within `bound` (H, W), cropped and padded to `size` around its center as by timm.

    Args:
        fill: Colour of the border, 0-255.
    """
    scale = max(image.height / bound[0], image.width / bound[1])
    across, down = max(1, round(image.width / scale)), max(1, round(image.height / scale))
    height, width = height_and_width(size)
    canvas = Image.new("RGB", (max(across, width), max(down, height)), fill)
    canvas.paste(image.resize((across, down), filter), ((canvas.width - across) // 2, (canvas.height - down) // 2))
    left, upper = round((canvas.width - width) / 2), round((canvas.height - height) / 2)
    return canvas.crop((left, upper, left + width, upper + height))
