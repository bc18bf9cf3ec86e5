"""The dVAE that the release calls `customized`, written from its formulas: the same names of tensors, independent code.

logits = conv1x1(... residual(relu(conv4x4, stride 2)))      pixels normalized by 0.5 / 0.5
image = conv1x1(... residual(relu(transposed conv4x4, stride 2)))(codebook[tokens])
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

Weights = dict[str, Tensor]


def random_weights(codes: int = 32, code_width: int = 12, width: int = 8, stages: int = 3) -> Weights:
    """Weights large enough that tokens differ and pixels leave [-1, 1] here and there."""
    weights = {"codebook.weight": torch.randn(codes, code_width)}

    def convolution(name: str, shape: tuple[int, ...], inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = torch.randn(shape) * (2 / inputs) ** 0.5
        weights[f"{name}.bias"] = torch.randn(outputs) * 0.1

    for half, first, last in (("encoder", 3, codes), ("decoder", code_width, 3)):
        channels = first
        for stage in range(stages):
            ends = (width, channels) if half == "encoder" else (channels, width)
            convolution(f"{half}.{2 * stage}.0", (*ends, 4, 4), channels * (16 if half == "encoder" else 4), width)
            for place, side in ((0, 3), (2, 3), (4, 1)):
                name = f"{half}.{2 * stage + 1}.net.{place}"
                convolution(name, (width, width, side, side), width * side**2, width)
            channels = width
        convolution(f"{half}.{2 * stages}", (last, width, 1, 1), width, last)
    return weights


def logits(weights: Weights, images: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, V, H / 8, W / 8)."""
    return _half(weights, "encoder", (images - 0.5) / 0.5)


def tokens(weights: Weights, images: Tensor) -> Tensor:
    return logits(weights, images).argmax(dim=1).flatten(1)


def decoded(weights: Weights, codes: Tensor) -> Tensor:
    """Codes (B, V, h, w), one-hot or relaxed, to normalized pixels (B, 3, H, W)."""
    return _half(weights, "decoder", torch.einsum("bvhw,vd->bdhw", codes, weights["codebook.weight"]))


def pictures(weights: Weights, tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    one_hot = F.one_hot(tokens.unflatten(1, grid), len(weights["codebook.weight"])).permute(0, 3, 1, 2).float()
    return (decoded(weights, one_hot) * 0.5 + 0.5).clamp(0, 1)


def _half(weights: Weights, half: str, features: Tensor) -> Tensor:
    def of(name: str) -> tuple[Tensor, Tensor]:
        return weights[f"{half}.{name}.weight"], weights[f"{half}.{name}.bias"]

    stage = 0
    while f"{half}.{stage}.0.weight" in weights:
        step = F.conv2d if half == "encoder" else F.conv_transpose2d
        features = F.relu(step(features, *of(f"{stage}.0"), stride=2, padding=1))
        inner = F.relu(F.conv2d(features, *of(f"{stage + 1}.net.0"), padding=1))
        inner = F.relu(F.conv2d(inner, *of(f"{stage + 1}.net.2"), padding=1))
        features = features + F.conv2d(inner, *of(f"{stage + 1}.net.4"))
        stage += 2
    return F.conv2d(features, *of(str(stage)))


def save_release(weights: Weights, path: Path) -> Path:
    """Writes the file that the release reads, `{"weights": ...}`, beside the settings of DALLE-pytorch."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"hparams": {"num_tokens": len(weights["codebook.weight"])}, "weights": weights}, path)
    return path
