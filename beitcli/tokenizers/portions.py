"""How many images a CPU encodes at once, so that the tokens of an image do not depend on the others, bit for bit.

Convolutions select a kernel by batch size, and logits differ by 4e-6 between kernels. So images are encoded in
portions of one size, the last one padded. The fewer in a portion, the more an image costs: 1.6 ms in portions of 8,
0.9 ms in portions of 64, for 32 x 32 pixels and 16 channels. A larger portion is as good where its logits are those of
portions of 8 to the last bit, which random images tell once for each size of image.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

INVARIANT_BATCH = 8  # images
_LARGER = (16, 32, 64)
_MOST_PIXELS = 64 * 64  # of an image; for larger ones calls cost little beside the convolutions, and the trial much


@dataclass
class _Found:
    """The largest portion that is as good, and the next one to try; 0 for none."""

    portion: int = INVARIANT_BATCH
    following: int = _LARGER[0]


_found: WeakKeyDictionary[nn.Module, dict[tuple[int, ...], _Found]] = WeakKeyDictionary()


def portions(model: nn.Module, logits: Callable[[Tensor], Tensor | None], images: Tensor) -> list[Tensor]:
    """Splits images into parts whose tokens do not depend on the split; each of at most 8 is to be padded to 8.

    Args:
        model: Network whose kernels are meant.
        logits: Maps images to its logits; None if it has none, and then all parts have 8 images.
        images: (B, C, H, W) on the CPU.
    """
    if len(images) < _LARGER[0] or images.shape[2] * images.shape[3] > _MOST_PIXELS:
        return list(images.split(INVARIANT_BATCH))
    key = (*images.shape[1:], torch.get_num_threads())
    found = _found.setdefault(model, {}).setdefault(key, _Found())
    while found.following and found.following <= len(images):
        _try_next(found, logits, images)
    whole = len(images) - len(images) % found.portion
    rest = images[whole:]
    return [*images[:whole].split(found.portion), *(rest.split(INVARIANT_BATCH) if len(rest) else ())]


def _try_next(found: _Found, logits: Callable[[Tensor], Tensor | None], like: Tensor) -> None:
    """Takes the next portion if its logits are those of 8; else the search has ended."""
    size = found.following
    drawn = torch.rand(size, *like.shape[1:], generator=torch.Generator().manual_seed(0))
    whole = logits(drawn)
    if whole is None or not _are_equal(whole, logits, drawn):
        found.following = 0
        return
    found.portion = size
    found.following = next((each for each in _LARGER if each > size), 0)


def _are_equal(whole: Tensor, logits: Callable[[Tensor], Tensor | None], images: Tensor) -> bool:
    """Whether `whole` are the logits of portions of 8; the first that differ end the comparison."""
    for start in range(0, len(images), INVARIANT_BATCH):
        part = slice(start, start + INVARIANT_BATCH)
        own = logits(images[part])
        if own is None or not torch.equal(own, whole[part]):
            return False
    return True
