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
) -> Image.Image:
    """Draws the panels of `reconstruction_panels` side by side."""
    return sheet(reconstruction_panels(original, decoded, min_width, captions))


def reconstruction_panels(
    original: Image.Image,
    decoded: Image.Image,
    min_width: int = 224,
    captions: tuple[str, str] = ("original", "from visual tokens"),
) -> list[Panel]:
    """Draws both at one size, without smoothing, so that the tokenizer's own pixels are visible.

    Args:
        original: The tokenizer's input.
        decoded: Its reconstruction; shown at the size of `original`.
        min_width: Minimum width of each picture, in pixels.
        captions: Below them.
    """
    left = crisp(original, max(min_width, decoded.width))
    return [Panel(left, captions[0]), Panel(nearest(decoded, left.size), captions[1])]
