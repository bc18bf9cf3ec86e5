"""Pictures that follow each other as one animation (GIF, WebP or PNG), each with its caption and a bar of progress."""

from __future__ import annotations

from collections.abc import Sequence
from typing import BinaryIO

from PIL import Image, ImageDraw

from beitcli.pictures.canvas import BLUE, GAP, RULE, elided, line_height
from beitcli.pictures.lettering import write
from beitcli.pictures.panels import INK, WHITE, caption_size, font_of

FORMATS = {".gif": "GIF", ".webp": "WEBP", ".png": "PNG"}
_LAST = 3  # times as long as the others the last frame stays
_IN_PALETTE = 8  # frames that choose the colours of a GIF
_MOST_ACROSS = 1200  # pixels: animations are looked at as a whole


def frames_of(pictures: Sequence[Image.Image], captions: Sequence[str]) -> list[Image.Image]:
    """Sets each picture on one canvas, its caption above it and a bar that grows from frame to frame.

    Args:
        pictures: Of any sizes; larger ones are scaled to the most that a frame is wide.
        captions: One per picture.

    Raises:
        ValueError: No pictures, or a wrong number of captions.
    """
    if not pictures or len(pictures) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(pictures)} pictures")
    fitted = [_fitted(picture) for picture in pictures]
    width, height = max(each.width for each in fitted), max(each.height for each in fitted)
    font = font_of(max(16, caption_size(width) if width < 640 else 22))
    head = line_height(font) + GAP
    frames = []
    for number, (picture, caption) in enumerate(zip(fitted, captions, strict=True), start=1):
        frame = Image.new("RGB", (width, height + head), WHITE)
        draw = ImageDraw.Draw(frame)
        write(draw, (GAP, head / 2), elided(caption, font, width - 2 * GAP), INK, font, "lm")
        draw.rectangle((GAP, head - 5, width - GAP, head - 2), RULE)
        draw.rectangle((GAP, head - 5, GAP + (width - 2 * GAP) * number // len(fitted), head - 2), BLUE)
        frame.paste(picture, ((width - picture.width) // 2, head))
        frames.append(frame)
    return frames


def save_animation(file: BinaryIO, frames: Sequence[Image.Image], format: str, milliseconds: int) -> None:
    """Writes frames of one size as an endless animation; the last one stays longer.

    Args:
        format: A value of FORMATS.
        milliseconds: How long a frame stays.
    """
    durations = [milliseconds] * (len(frames) - 1) + [_LAST * milliseconds]
    pictures = list(frames)
    settings: dict[str, object] = {}
    if format == "GIF":
        # One table for all: what stays does not flicker. One colour is left for pixels that stay, which cost nothing.
        table = _strip(frames).quantize(255, dither=Image.Dither.NONE)
        pictures = [each.quantize(palette=table, dither=Image.Dither.FLOYDSTEINBERG) for each in frames]
        settings = {"disposal": 1, "optimize": True}
    elif format == "WEBP":
        settings = {"quality": 88, "method": 4}
    first, *others = pictures
    first.save(file, format=format, save_all=True, append_images=others, duration=durations, loop=0, **settings)


def _strip(frames: Sequence[Image.Image]) -> Image.Image:
    """Returns a few frames, the first and the last among them, small and beside each other."""
    count = min(len(frames), _IN_PALETTE)
    chosen = [frames[round(number * (len(frames) - 1) / max(1, count - 1))] for number in range(count)]
    size = (max(1, frames[0].width // 2), max(1, frames[0].height // 2))
    strip = Image.new("RGB", (size[0] * count, size[1]))
    for number, frame in enumerate(chosen):
        strip.paste(frame.resize(size, Image.Resampling.NEAREST), (number * size[0], 0))
    return strip


def _fitted(picture: Image.Image) -> Image.Image:
    picture = picture.convert("RGB")
    if picture.width <= _MOST_ACROSS:
        return picture
    height = round(picture.height * _MOST_ACROSS / picture.width)
    return picture.resize((_MOST_ACROSS, height), Image.Resampling.LANCZOS)
