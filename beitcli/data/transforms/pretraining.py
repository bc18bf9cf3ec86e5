"""Fast transform for pretraining: only the crop box is resized, and colours are jittered on the device.

Every draw is that of the reference (`base.PretrainingTransform`): both crop the same box of an image and flip it alike.
They differ by rounding, by the order of jitter and resize, and along the box's edges, beyond which Pillow reads pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from beitcli.data.transforms.base import TwoCropTransform, draw_crop_box, draw_jitter, height_and_width
from beitcli.data.transforms.color_jitter import COLOR_NUMBERS, compose_jitter
from beitcli.runtime.compute.keyed_rng import keyed_generator

_TORCH_HAS_LANCZOS = hasattr(torch.ops.aten, "_upsample_lanczos2d_aa")


@dataclass(frozen=True, kw_only=True)
class FastPretrainingTransform(TwoCropTransform):
    """uint8 in and out; `color_jitter.apply_color` applies the jitter."""

    wants_pixels: ClassVar[bool] = True

    @property
    def bytes_per_image(self) -> int:
        return super().bytes_per_image + (4 * COLOR_NUMBERS if self.color_jitter > 0 else 0)

    def __call__(self, pixels: np.ndarray, epoch: int, index: int) -> dict[str, np.ndarray]:
        """Returns `images` (3, H, W) and, with a tokenizer, `token_images` (3, h, w), uint8; `color` (9,) with jitter.

        Args:
            pixels: (H, W, 3) uint8, the whole image.
        """
        rng = keyed_generator(self.seed, "view", epoch, index)
        changes = draw_jitter(self.color_jitter, rng) if self.color_jitter > 0 else []
        is_flipped = rng.random() < 0.5
        height, width = height_and_width(self.image_size)
        left, upper, right, lower = draw_crop_box(
            pixels.shape[1], pixels.shape[0], rng, self.min_crop, target_aspect=width / height
        )
        if is_flipped:  # the box was drawn on the mirrored image
            left, right = pixels.shape[1] - right, pixels.shape[1] - left
        crop = np.require(pixels[upper:lower, left:right], requirements="W")  # copied once, where both resizes would
        with _memory_errors():
            views = {"images": resize(crop, (height, width), "bicubic")}
            if self.token_size is not None:
                views["token_images"] = resize(crop, height_and_width(self.token_size), self.token_filter)
            if is_flipped:
                views = {name: view.flip(-1) for name, view in views.items()}
            arrays = {name: view.numpy() for name, view in views.items()}
        if changes:
            arrays["color"] = compose_jitter(pixels, changes)
        return arrays


def resize(pixels: np.ndarray, size: tuple[int, int], filter: str) -> torch.Tensor:
    """Resizes (H, W, 3) uint8 to (3, h, w) uint8, antialiased, within two levels of Pillow's result.

    Args:
        size: (h, w).
        filter: `bicubic` or `lanczos`.
    """
    if filter == "lanczos" and not _TORCH_HAS_LANCZOS:
        resized = np.array(Image.fromarray(pixels).resize(size[::-1], Image.Resampling.LANCZOS))
        return torch.from_numpy(resized).permute(2, 0, 1).contiguous()
    channels_last = torch.from_numpy(np.require(pixels, requirements="W")).permute(2, 0, 1)[None]
    return F.interpolate(channels_last, size=size, mode=filter, antialias=True)[0]


@contextmanager
def _memory_errors() -> Iterator[None]:
    """Converts torch's RuntimeError for a failed allocation to MemoryError."""
    try:
        yield
    except RuntimeError as error:
        if "allocate memory" in str(error):
            raise MemoryError from None
        raise
