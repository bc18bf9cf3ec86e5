"""Images that a Python program holds: Pillow images, arrays, tensors, or names of files."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from beitcli.data.decode import decode_rgb
from beitcli.data.decoding.rgb import to_rgb
from beitcli.data.sources.base import Source
from beitcli.data.sources.files import read_file
from beitcli.errors import UsageError

_KINDS = "a path, a Pillow image, an array (H, W, 3) or a tensor (3, H, W), or several of these"
_CHANNELS = (1, 3)


class MemorySource(Source):
    """One image or several, each converted as a file of it would be.

    Args:
        images: A path, a Pillow image, an array or a tensor, or a list of these. Arrays and tensors are uint8, or
            floats in [0, 1], which are rounded to 255ths. An array is (H, W), (H, W, C) or (B, H, W, C), a tensor
            (H, W), (C, H, W) or (B, C, H, W), each also in the other's order where the number of channels tells it; C
            is 1 or 3.

    Raises:
        UsageError: There is no image, or something else.
    """

    name = "images"

    def __init__(self, images: Any) -> None:
        self._images = list(_each(images))
        if not self._images:
            raise UsageError("There is no image.", f"Give {_KINDS}.")

    def __len__(self) -> int:
        return len(self._images)

    def path(self, index: int) -> str:
        image = self._images[index]
        return image if isinstance(image, str) else f"image-{index}"

    def read(self, index: int) -> bytes:
        image = self._images[index]
        if not isinstance(image, str):
            raise TypeError(f"image {index} is no file")
        return read_file(image)

    def image(self, index: int) -> Image.Image:
        image = self._images[index]
        if isinstance(image, str):
            return decode_rgb(read_file(image), self.intensity)
        if isinstance(image, Image.Image):
            return to_rgb(ImageOps.exif_transpose(image.copy()), b"", self.intensity)
        return Image.fromarray(_pixels(image))


def _each(images: Any) -> Iterator[str | Image.Image | np.ndarray]:
    """Yields paths, Pillow images, and arrays (H, W, C)."""
    if isinstance(images, str | os.PathLike):
        path = os.fspath(images)
        if os.path.isdir(path):
            raise UsageError(f"'{path}' is a folder.", "Give images, or call beitcli.embed or beitcli.predict on it.")
        yield path
    elif isinstance(images, Image.Image):
        yield images
    elif isinstance(images, np.ndarray):
        yield from _planes(images, channels_first=False)
    elif hasattr(images, "detach"):
        yield from _planes(images.detach().cpu().numpy(), channels_first=True)
    elif hasattr(images, "__iter__"):
        for image in images:
            yield from _each(image)
    else:
        raise UsageError(f"{type(images).__name__} is no image.", f"Give {_KINDS}.")


def _planes(array: np.ndarray, *, channels_first: bool) -> Iterator[np.ndarray]:
    """Splits a batch, and moves the channels behind; `channels_first` decides where either order fits."""
    if array.ndim == 4:
        for each in array:
            yield from _planes(each, channels_first=channels_first)
        return
    if array.ndim == 2:
        array, channels_first = array[None], True
    first, last = (array.ndim == 3 and array.shape[axis] in _CHANNELS for axis in (0, -1))
    if not (first or last) or 0 in array.shape:
        raise UsageError(f"An array of shape {array.shape} is no image.", "Give (H, W, 3), or a tensor (3, H, W).")
    yield np.moveaxis(array, 0, -1) if (first and channels_first) or not last else array


def _pixels(array: np.ndarray) -> np.ndarray:
    """(H, W, C) of uint8, or of floats in [0, 1], to (H, W, 3) uint8."""
    if array.dtype != np.uint8:
        if array.dtype.kind != "f" or not (np.isfinite(array).all() and array.min() >= 0 and array.max() <= 1):
            raise UsageError(
                f"An image of {array.dtype} from {array.min():g} to {array.max():g} is neither uint8 nor in [0, 1].",
                "Scale it, and leave normalization to the model.",
            )
        array = np.rint(array.astype(np.float64) * 255).astype(np.uint8)
    return np.ascontiguousarray(np.broadcast_to(array, (*array.shape[:2], 3)))
