"""Weights from one BEiT into another: pretraining to finetuning, one image size to another.

As in the release: a shared bias table is cloned into every block, index buffers are rebuilt, tables and positions are
resized, the pretraining `norm` is not the finetuning `fc_norm`, and the head starts anew.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed, resize_rel_pos_bias_table
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.errors import StorageError


@dataclass(frozen=True)
class Transfer:
    """What became of each tensor.

    Attributes:
        loaded: Taken as they are, resized ones included.
        resized: Fitted to another grid.
        dropped: In the source only.
        fresh: In the target only; they keep their initialisation.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    fresh: tuple[str, ...]


def finetuning_architecture(pretrained: Architecture, image_size: tuple[int, int] | None) -> Architecture:
    """The same backbone for finetuning: a shared bias becomes one a block."""
    return Architecture(
        image_size=image_size or pretrained.image_size,
        patch_size=pretrained.patch_size,
        width=pretrained.width,
        depth=pretrained.depth,
        heads=pretrained.heads,
        mlp_ratio=pretrained.mlp_ratio,
        positions="per-block" if pretrained.positions == "shared" else pretrained.positions,
        layer_scale=pretrained.layer_scale,
    )


def expand_shared_bias(tensors: Mapping[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """Clones the shared relative position bias table into every block."""
    shared = "rel_pos_bias.relative_position_bias_table"
    expanded = {name: tensor for name, tensor in tensors.items() if name != shared}
    if shared in tensors:
        for block in range(depth):
            expanded[f"blocks.{block}.attn.relative_position_bias_table"] = tensors[shared].clone()
    return expanded


def resize_to(
    tensors: Mapping[str, torch.Tensor], source: Architecture, target: Architecture
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Fits positions and bias tables to the target's grid; returns the names it changed."""
    if source.grid == target.grid:
        return dict(tensors), []
    fitted, resized = {}, []
    rows = (2 * target.grid[0] - 1) * (2 * target.grid[1] - 1) + 3
    for name, tensor in tensors.items():
        if name == "pos_embed":
            tensor = resample_abs_pos_embed(tensor, list(target.grid), list(source.grid), antialias=False)
            resized.append(name)
        elif name.endswith("relative_position_bias_table"):
            with warnings.catch_warnings():  # timm builds its grid by calls that newer torch warns of
                warnings.simplefilter("ignore", UserWarning)
                tensor = resize_rel_pos_bias_table(tensor, target.grid, (rows, target.heads))
            resized.append(name)
        fitted[name] = tensor
    return fitted, resized


def load_backbone(
    model: nn.Module, tensors: Mapping[str, torch.Tensor], source: Architecture, target: Architecture, *, head: bool
) -> Transfer:
    """Loads `tensors` of a `source` model into `model`, which is a `target`.

    Args:
        head: Also take `head.*` and `fc_norm.*` (the same task goes on).

    Raises:
        StorageError: A tensor of the backbone is missing or of another shape.
    """
    expanded = expand_shared_bias(tensors, target.depth) if target.positions == "per-block" else dict(tensors)
    fitted, resized = resize_to(expanded, source, target)
    wanted = model.state_dict()
    untouched = () if head else ("head.", "fc_norm.")
    usable = {
        name: tensor
        for name, tensor in fitted.items()
        if name in wanted and not name.startswith(untouched if untouched else ("\0",))
    }
    fresh = tuple(name for name in wanted if name not in usable)
    absent = [name for name in fresh if not name.startswith(("head.", "fc_norm.", "token_head.", "mask_token"))]
    misfit = [name for name, tensor in usable.items() if tensor.shape != wanted[name].shape]
    if absent or misfit:
        first = (absent or misfit)[0]
        raise StorageError(
            f"The checkpoint does not fit this model: {len(absent)} tensors missing, {len(misfit)} of another shape "
            f"(first: {first}).",
            "Check with --init that it is a BEiT of the same size.",
        )
    model.load_state_dict(usable, strict=False)
    dropped = tuple(name for name in tensors if name not in usable and not name.startswith("rel_pos_bias."))
    return Transfer(tuple(usable), tuple(resized), dropped, fresh)
