"""Colour jitter after the resize: nine numbers per image, which the device applies in the same pass as normalization.

Brightness, contrast and saturation in any order are at most one saturation between two increasing linear functions,
each clipped to [0, 255]. Consecutive clipped linear functions combine into one. So nine numbers describe the whole
jitter, clipping included:

    y = clamp(gain * x + offset, low, high)                       for every channel alike
    z = clamp(own * y + shared * grey(y) + offset', low', high')  grey: ITU-R 601-2 luma

The contrast's mean is taken over some rows of the whole image; the reference takes it over the whole image. Pillow
truncates the fraction at each step, which subtracting half a level approximates.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import nn

from beitcli.data.transforms.base import BRIGHTNESS, CONTRAST, normalize

GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)
COLOR_NUMBERS = 9
_ROWS = 32
_CUT_OFF = 0.5
_Line = tuple[float, float, float, float]  # gain, offset, low, high
_SAME: _Line = (1.0, 0.0, -1e6, 1e6)
_NOTHING = ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def compose_jitter(pixels: np.ndarray, changes: list[tuple[int, float]]) -> np.ndarray:
    """Combines the jitter to nine numbers, in levels of 255. Costs 0.05 ms.

    Args:
        pixels: (H, W, 3) uint8, the whole image.
        changes: (which, factor) from `base.draw_jitter`; each at most once.

    Returns:
        (9,) float32: gain, offset, low, high; own, shared, offset', low', high'.
    """
    lines, saturation, brightness = [_SAME, _SAME], 1.0, 1.0
    place = 0
    for which, factor in changes:
        gain, offset = factor, 0.0
        if which == BRIGHTNESS:
            brightness = factor
        elif which == CONTRAST:
            offset = (1 - factor) * _grey_mean(pixels, brightness)
        else:
            gain, saturation, place = 1.0, factor, 1
        lines[place] = _then(lines[place], gain, offset - _CUT_OFF)
    (gain, offset, low, high), (gain_after, *after) = lines
    both = (gain_after * saturation, gain_after * (1 - saturation))
    return np.array((gain, offset, low, high, *both, *after), dtype=np.float32)


def _grey_mean(pixels: np.ndarray, brightness: float) -> int:
    """Returns the mean grey level of the brightened image, from some of its rows, rounded as by Pillow's contrast.

    Saturation does not change it, except by clipping to [0, 255].
    """
    step = max(1, len(pixels) // _ROWS)
    seen = pixels[step // 2 :: step]
    if brightness > 1:
        seen = np.minimum(seen, np.uint8(round(255 / brightness)))
    means = seen.sum(axis=0, dtype=np.uint32).sum(axis=0) / (len(seen) * seen.shape[1])
    return int(brightness * float(means @ GREY) + 0.5)


def _then(line: _Line, gain: float, offset: float) -> _Line:
    """Appends a linear function clipped to [0, 255]: clamp(clamp(x, l, h) * g + o) = clamp(x * g + o, l', h')."""
    low, high = (min(255.0, max(0.0, bound * gain + offset)) for bound in line[2:])
    return line[0] * gain, line[1] * gain + offset, low, high


def apply_color(
    images: torch.Tensor,
    color: torch.Tensor,
    mean: tuple[float, ...] = _NOTHING[0],
    std: tuple[float, ...] = _NOTHING[1],
) -> torch.Tensor:
    """Jitters and normalizes on the images' device, without synchronizing.

    Args:
        images: (B, 3, H, W) uint8.
        color: (B, 9) float32, from `compose_jitter`.

    Returns:
        (B, 3, H, W) float32, (value / 255 - mean) / std.
    """
    grey, scale, shift = _constants(images.device, tuple(mean), tuple(std))
    if images.device.type == "cpu":
        return _one_by_one(images, color, scale, -shift)
    return _whole_batch(images, color, grey, scale, shift)


class PixelNormalizer(nn.Module):
    """`apply_color` or `normalize` as a module for a compiled step: one pass, with constants as buffers.

    Args:
        mean: Per channel, of pixels in [0, 1]; `std` likewise.
    """

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = tuple(mean), tuple(std)
        grey, scale, shift = _constants(torch.device("cpu"), self.mean, self.std)
        self.grey, self.scale, self.shift = (
            nn.Buffer(tensor.clone(), persistent=False) for tensor in (grey, scale, shift)
        )

    def forward(self, images: torch.Tensor, color: torch.Tensor | None) -> torch.Tensor:
        """Converts (B, 3, H, W) uint8 to float32, (value / 255 - mean) / std, jittered by (B, 9) `color` if given."""
        if not torch.compiler.is_compiling():
            if color is None:
                return normalize(images, self.mean, self.std)
            return apply_color(images, color, self.mean, self.std)
        if color is None:
            return images.float() * self.scale - self.shift
        return _whole_batch(images, color, self.grey, self.scale, self.shift)


def _whole_batch(
    images: torch.Tensor, color: torch.Tensor, grey: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor
) -> torch.Tensor:
    """Elementwise except for the mean over channels, so that it fuses; eager mode on a GPU makes eight passes."""
    gain, offset, low, high, own, shared, offset_after, low_after, high_after = color[..., None, None, None].unbind(1)
    levels = torch.clamp(images * gain + offset, low, high)
    luma = (levels * grey).sum(dim=1, keepdim=True)
    changed = torch.clamp(levels * own + luma * shared + offset_after, low_after, high_after)
    return changed * scale - shift


def _one_by_one(images: torch.Tensor, color: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """The same image by image, in the CPU's cache: 0.2 ms per image of 224 pixels, where whole batches take 1 to 2."""
    made = torch.empty(images.shape)
    levels, luma = torch.empty(images.shape[1:]), torch.empty(images.shape[2:])
    offsets, offsets_after = color[:, 1], color[:, 6]
    for place, (gain, _, low, high, own, shared, _, low_after, high_after) in enumerate(color.tolist()):
        levels.copy_(images[place])
        torch.add(offsets[place], levels, alpha=gain, out=levels).clamp_(low, high)
        torch.add(offsets_after[place], levels[0], alpha=shared * GREY[0], out=luma)
        luma.add_(levels[1], alpha=shared * GREY[1]).add_(levels[2], alpha=shared * GREY[2])
        torch.add(luma, levels, alpha=own, out=levels).clamp_(low_after, high_after)
        torch.addcmul(shift, levels, scale, out=made[place])
    return made


@lru_cache(maxsize=64)
def _constants(
    device: torch.device, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Returns the weights of grey, and scale and shift from levels to normalized values; (3, 1, 1) each."""
    with torch.inference_mode(False):  # cached for callers outside inference mode
        grey, means, stds = (torch.tensor(each, device=device).view(3, 1, 1) for each in (GREY, mean, std))
        return grey, 1 / (255 * stds), means / stds
