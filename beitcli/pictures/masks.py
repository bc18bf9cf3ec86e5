"""Draws the hidden patches of a mask on the image, and what a model guesses of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from beitcli.pictures.canvas import BLUE, VERMILION, Panel
from beitcli.pictures.panels import INK, WHITE, Colour, crisp, nearest
from beitcli.runtime.metric_text import frequent_token, percent

HIDDEN: Colour = (128, 128, 128)
RIGHT, WRONG = BLUE, VERMILION
_OVERSAMPLING = 4  # Pillow does not antialias shapes
SEAM: Colour = (146, 146, 146)
MARKS = "disc: right, cross: wrong"


def patch_edges(pixels: int, patches: int) -> np.ndarray:
    """Returns the pixel positions of the patch edges along a side: (patches + 1,) int64."""
    return np.arange(patches + 1) * pixels // patches


def spread(patch_values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Repeats each patch's value over its pixels.

    Args:
        patch_values: (h, w).
        size: (width, height) in pixels, at least one per patch.

    Returns:
        (height, width) of the same dtype.
    """
    rows, columns = (np.diff(patch_edges(size[1 - side], patch_values.shape[side])) for side in (0, 1))
    return patch_values.repeat(rows, axis=0).repeat(columns, axis=1)


def width_for(image: Image.Image, grid: tuple[int, ...], min_width: int) -> int:
    """Returns the width in pixels, at least `min_width`, at which every patch has at least 8 x 8 pixels."""
    rows, columns = grid
    return max(min_width, 8 * columns, -(-8 * rows * image.width // image.height))


def mask_overlay(
    image: Image.Image, mask: np.ndarray, min_width: int = 448, hidden: Colour = HIDDEN, seam: Colour = SEAM
) -> Image.Image:
    """Draws hidden patches in grey; the pixels of visible patches are unchanged.

    Args:
        image: The model's input; enlarged by whole pixels to at least `min_width` and 8 pixels per patch.
        mask: (h, w) bool, True where the patch is hidden.
        min_width: Minimum width of the result, in pixels.
        hidden: RGB of hidden patches.
        seam: RGB of the lines between and around hidden patches, drawn inside them.

    Raises:
        ValueError: `mask` is not (h, w).
    """
    if mask.ndim != 2:
        raise ValueError(f"a mask of shape {mask.shape} is not (h, w)")
    picture = crisp(image, width_for(image, mask.shape, min_width))
    pixels = np.asarray(picture).copy()
    covered = spread(mask.astype(bool), picture.size)
    pixels[covered] = hidden
    lines = np.zeros_like(covered)
    thickness = max(1, round(picture.width / mask.shape[1] / 32))
    for offset in range(thickness):
        for edge in (patch_edges(picture.height, mask.shape[0])[:-1] + offset).tolist():
            lines[edge] = True
        for edge in (patch_edges(picture.width, mask.shape[1])[:-1] + offset).tolist():
            lines[:, edge] = True
    pixels[lines & covered] = seam
    return Image.fromarray(pixels)


@dataclass(frozen=True)
class Guesses:
    """What a model makes of the hidden patches.

    Attributes:
        picture: The image with its guesses, of the aspect ratio of the grid.
        own: The image decoded from its own tokens; None where pixels are guessed.
        right: (h, w) bool, True where the guessed token is the image's own; None where pixels are guessed.
        baseline: Accuracy of always guessing the most frequent token, in [0, 1], where it is known.
    """

    picture: Image.Image
    own: Image.Image | None = None
    right: np.ndarray | None = None
    baseline: float | None = None

    def notes(self, mask: np.ndarray) -> tuple[str, ...]:
        """Returns the accuracy in words; empty where pixels are guessed."""
        if self.right is None:
            return ()
        hidden, right = int(mask.sum()), int(self.right[mask].sum())
        return (f"{right} of {hidden} right ({right / hidden:.0%})",)

    @property
    def legend(self) -> tuple[str, ...]:
        """What the marks stand for and the accuracy to compare with, alike for all images of a model."""
        if self.right is None:
            return ()
        if self.baseline is None:
            return (MARKS,)
        return MARKS, f"always {frequent_token(self.baseline)}: {percent(self.baseline)} right"


def mask_panels(
    image: Image.Image,
    mask: np.ndarray,
    guesses: Guesses | None = None,
    title: str = "",
    crop: str = "",
    min_width: int = 448,
) -> list[Panel]:
    """Draws the image, what is hidden of it and, with guesses, what its own and the guessed tokens decode to.

    Args:
        image: The model's input.
        mask: (h, w) bool, True where the patch is hidden.
        title: Name of the image.
        crop: What part of the image is shown, in words.
        min_width: Minimum width of each picture, in pixels.
    """
    masked = mask_overlay(image, mask, min_width)
    outline(masked, mask)
    hidden = int(mask.sum())
    panels = [
        Panel(nearest(image, masked.size), title or "image", (crop,) if crop else ()),
        Panel(masked, "hidden", (f"{hidden} of {mask.size} patches ({hidden / mask.size:.0%})",)),
    ]
    if guesses is None:
        return panels
    if guesses.own is not None:
        own = smooth(guesses.own, masked.size)
        outline(own, mask)
        panels.append(Panel(own, "from its own tokens", ("the tokenizer's best",)))
    guessed = smooth(guesses.picture, masked.size)
    if guesses.right is None:
        outline(guessed, mask)
        panels.append(Panel(guessed, "guessed pixels", ("in the outlined patches",)))
    else:
        mark_guesses(guessed, mask, guesses.right)
        panels.append(Panel(guessed, "from guessed tokens", guesses.notes(mask)))
    return panels


def outline(picture: Image.Image, mask: np.ndarray) -> None:
    """Draws a line of two tones around the hidden areas, inside of them, in place: it is seen on any colour."""
    pixels = np.asarray(picture).copy()
    thickness = max(1, round(picture.width / mask.shape[1] / 24))
    covered = spread(mask.astype(bool), picture.size)
    dark = covered & ~_shrunk(covered, thickness)
    light = covered & ~dark & ~_shrunk(covered, 2 * thickness)
    pixels[dark], pixels[light] = INK, WHITE
    picture.paste(Image.fromarray(pixels))


def _shrunk(covered: np.ndarray, steps: int) -> np.ndarray:
    """Takes `steps` pixels away from the areas' edges; the picture's own edge is one too."""
    padded = np.pad(covered, steps)
    kept = padded.copy()
    for step in range(1, steps + 1):
        for axis in (0, 1):
            kept &= np.roll(padded, step, axis) & np.roll(padded, -step, axis)
    for down in (-steps, steps):
        for across in (-steps, steps):
            kept &= np.roll(padded, (down, across), (0, 1))
    return kept[steps:-steps, steps:-steps]


def mark_guesses(picture: Image.Image, mask: np.ndarray, right: np.ndarray) -> None:
    """Outlines the hidden areas, with a blue disc in patches that are guessed right and a cross in the others.

    Args:
        mask: (h, w) bool, True where the patch is hidden.
        right: (h, w) bool; read where the patch is hidden.
    """
    outline(picture, mask)
    rows, columns = patch_edges(picture.height, mask.shape[0]), patch_edges(picture.width, mask.shape[1])
    side = min(picture.height / mask.shape[0], picture.width / mask.shape[1])
    marks = {state: _mark(state, max(5, round(min(side * 0.34, 22)))) for state in (True, False)}
    for row, column in np.argwhere(mask).tolist():
        mark = marks[bool(right[row, column])]
        x = (columns[column] + columns[column + 1] - mark.width) // 2
        y = (rows[row] + rows[row + 1] - mark.height) // 2
        picture.paste(mark, (int(x), int(y)), mark)


def _mark(is_right: bool, side: int) -> Image.Image:
    """Draws a mark of `side` pixels: a disc or a cross, told apart without colour, on a rim."""
    large = side * _OVERSAMPLING
    mark = Image.new("RGBA", (large, large), (*WHITE, 0))
    draw = ImageDraw.Draw(mark)
    if is_right:
        rim = large * 0.14
        draw.ellipse((0, 0, large - 1, large - 1), (*WHITE, 255))
        draw.ellipse((rim, rim, large - 1 - rim, large - 1 - rim), (*RIGHT, 255))
    else:
        for colour, width, inset in (((*WHITE, 255), 0.36, 0.16), ((*WRONG, 255), 0.18, 0.22)):
            low, high = large * inset, large * (1 - inset) - 1
            draw.line((low, low, high, high), colour, round(large * width))
            draw.line((low, high, high, low), colour, round(large * width))
    return mark.resize((side, side), Image.Resampling.BOX)


def smooth(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Converts to RGB and resizes to `size` (width, height) with bicubic interpolation."""
    return image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
