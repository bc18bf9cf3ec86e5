"""Draws an image next to the image decoded from its visual tokens."""

from __future__ import annotations

from PIL import Image

from beitcli.pictures.canvas import Panel, sheet
from beitcli.pictures.panels import crisp, nearest


def reconstruction_pair(
    original: Image.Image,
    decoded: Image.Image,
    min_width: int = 224,
    captions: tuple[str, str] = ("original", "from visual tokens"),
    size: int | None = None,
) -> Image.Image:
    """Draws both side by side at one size, without smoothing, so that the tokenizer's own pixels are visible.

    Args:
        original: The tokenizer's input.
        decoded: Its reconstruction; shown at the size of `original`.
        min_width: Minimum width of each picture, in pixels.
        captions: Below them.
        size: Font size in pixels; default by the width of the pictures.
    """
    left = crisp(original, max(min_width, decoded.width))
    return sheet([Panel(left, captions[0]), Panel(nearest(decoded, left.size), captions[1])], size=size)
