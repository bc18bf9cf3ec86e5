"""An image beside what its visual tokens decode to."""

from __future__ import annotations

from PIL import Image

from beitcli.pictures.panels import crisp, grid_of, nearest


def reconstruction_pair(
    original: Image.Image,
    decoded: Image.Image,
    min_width: int = 224,
    captions: tuple[str, str] = ("original", "from visual tokens"),
) -> Image.Image:
    """Side by side at one size, without smoothing, so that a person sees the tokenizer's own pixels.

    Args:
        original: The view the tokenizer got.
        decoded: What came back; shown at the size of `original`.
        min_width: Of each picture, in pixels.
        captions: Below them.
    """
    left = crisp(original, max(min_width, decoded.width))
    return grid_of([left, nearest(decoded, left.size)], captions=captions)
