"""DALL-E's encoder and decoder as whole pickled modules, like OpenAI's release: the same names, independent code.

The classes are in `sys.modules` under the release's names only while a file is written, so that a reader cannot find
them.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv2d(nn.Module):
    def __init__(self, n_in: int, n_out: int, kw: int) -> None:
        super().__init__()
        self.n_in, self.n_out, self.kw = n_in, n_out, kw
        self.use_float16, self.device = True, torch.device("cpu")
        self.w = nn.Parameter(torch.randn(n_out, n_in, kw, kw) * (n_in * kw * kw) ** -0.5)
        self.b = nn.Parameter(torch.randn(n_out) * 0.1)

    def forward(self, features: Tensor) -> Tensor:
        return F.conv2d(features, self.w, self.b, padding=self.kw // 2)


def block_parts(n_in: int, n_out: int, kernels: tuple[int, ...]) -> tuple[nn.Module, nn.Sequential]:
    hidden, parts = n_out // 4, OrderedDict()
    for number, kernel in enumerate(kernels, start=1):
        parts[f"relu_{number}"] = nn.ReLU()
        ends = n_in if number == 1 else hidden, n_out if number == len(kernels) else hidden
        parts[f"conv_{number}"] = Conv2d(*ends, kernel)
    return nn.Identity() if n_in == n_out else Conv2d(n_in, n_out, 1), nn.Sequential(parts)


class EncoderBlock(nn.Module):
    def __init__(self, n_in: int, n_out: int, n_layers: int) -> None:
        super().__init__()
        self.post_gain = 1 / n_layers**2
        self.id_path, self.res_path = block_parts(n_in, n_out, (3, 3, 3, 1))

    def forward(self, features: Tensor) -> Tensor:
        return self.id_path(features) + self.post_gain * self.res_path(features)


class DecoderBlock(EncoderBlock):
    def __init__(self, n_in: int, n_out: int, n_layers: int) -> None:
        nn.Module.__init__(self)
        self.post_gain = 1 / n_layers**2
        self.id_path, self.res_path = block_parts(n_in, n_out, (1, 3, 3, 3))


class Encoder(nn.Module):
    """Maps pixels, (B, 3, H, W) as `map_pixels` gives them, to logits (B, V, h, w)."""

    def __init__(self, vocab_size: int = 32, width: int = 8, groups: int = 4, blocks: int = 2) -> None:
        super().__init__()
        self.group_count, self.n_hid, self.vocab_size, self.device = groups, width, vocab_size, torch.device("cpu")
        widths = [width * 2**group for group in range(groups)]
        parts = OrderedDict(input=Conv2d(3, width, 7))
        for number, (before, after) in enumerate(zip([width, *widths], widths, strict=False), start=1):
            group = {
                f"block_{b + 1}": EncoderBlock(after if b else before, after, groups * blocks) for b in range(blocks)
            }
            if number < groups:
                group["pool"] = nn.MaxPool2d(kernel_size=2)
            parts[f"group_{number}"] = nn.Sequential(OrderedDict(group))
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(widths[-1], vocab_size, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, mapped: Tensor) -> Tensor:
        return self.blocks(mapped)


class Decoder(nn.Module):
    """Maps one-hot codes, (B, V, h, w), to (B, 6, H, W)."""

    def __init__(
        self, vocab_size: int = 32, width: int = 8, groups: int = 4, blocks: int = 2, init_width: int = 12
    ) -> None:
        super().__init__()
        self.group_count, self.n_hid, self.vocab_size, self.device = groups, width, vocab_size, torch.device("cpu")
        widths = [width * 2**group for group in reversed(range(groups))]
        parts = OrderedDict(input=Conv2d(vocab_size, init_width, 1))
        for number, (before, after) in enumerate(zip([init_width, *widths], widths, strict=False), start=1):
            group = {
                f"block_{b + 1}": DecoderBlock(after if b else before, after, groups * blocks) for b in range(blocks)
            }
            if number < groups:
                group["upsample"] = nn.Upsample(scale_factor=2, mode="nearest")
            parts[f"group_{number}"] = nn.Sequential(OrderedDict(group))
        parts["output"] = nn.Sequential(OrderedDict(relu=nn.ReLU(), conv=Conv2d(width, 6, 1)))
        self.blocks = nn.Sequential(parts)

    def forward(self, codes: Tensor) -> Tensor:
        return self.blocks(codes)


_PLACES = {
    "dall_e.utils": (Conv2d,),
    "dall_e.encoder": (Encoder, EncoderBlock),
    "dall_e.decoder": (Decoder, DecoderBlock),
}
for _name, _classes in _PLACES.items():
    for _class in _classes:
        _class.__module__ = _name


@contextmanager
def importable() -> Iterator[None]:
    """Context in which the classes are importable under the release's names, with their source."""
    made = {name: ModuleType(name) for name in ("dall_e", *_PLACES)}
    for name, classes in _PLACES.items():
        made[name].__file__ = __file__
        for each in classes:
            setattr(made[name], each.__name__, each)
    sys.modules.update(made)
    try:
        yield
    finally:
        for name in made:
            del sys.modules[name]


def save_module(module: nn.Module, path: Path, legacy: bool = False) -> Path:
    """Pickles the whole module, in the zip container or in the legacy one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with importable():
        torch.save(module, path, _use_new_zipfile_serialization=not legacy)
    return path
