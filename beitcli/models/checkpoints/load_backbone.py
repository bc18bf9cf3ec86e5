"""Weights from one BEiT into another: pretraining to finetuning, one image size to another.

As in the release: a shared bias table is cloned into every block, index buffers are rebuilt, tables and positions are
resized, the pretraining `norm` is not the finetuning `fc_norm`, and the head starts anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.errors import StorageError
from beitcli.models.checkpoints.key_mapping import by_block
from beitcli.models.checkpoints.resize_positions import resize_bias_table, resize_positions

_TABLE = "relative_position_bias_table"


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

    def sentences(self, unknown: tuple[str, ...] = ()) -> list[str]:
        """Every tensor that is not simply taken over, those of all blocks under one name.

        Args:
            unknown: Names in the file that were not even read; they are dropped too.
        """
        parts = {"resized": self.resized, "dropped": (*self.dropped, *unknown), "new": self.fresh}
        return [f"{len(self.loaded)} tensors loaded"] + [
            f"{what}: {', '.join(by_block(names))}" for what, names in parts.items() if names
        ]


def expand_shared_bias(tensors: Mapping[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """Clones the shared relative position bias table into every block."""
    shared = f"rel_pos_bias.{_TABLE}"
    expanded = {name: tensor for name, tensor in tensors.items() if name != shared}
    if shared in tensors:
        for block in range(depth):
            expanded[f"blocks.{block}.attn.{_TABLE}"] = tensors[shared].clone()
    return expanded


def resize_to(
    tensors: Mapping[str, torch.Tensor], source: Architecture, target: Architecture
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Fits positions and bias tables to the target's grid; returns the names it changed.

    Raises:
        UsageError: Tables of a grid that is not square.
    """
    if source.grid == target.grid:
        return dict(tensors), []
    fitted, resized = {}, []
    for name, tensor in tensors.items():
        if name == "pos_embed":
            tensor = resize_positions(tensor, source.grid, target.grid)
            resized.append(name)
        elif name.endswith(_TABLE):
            tensor = resize_bias_table(tensor, source.grid, target.grid)
            resized.append(name)
        fitted[name] = tensor
    return fitted, resized


def load_backbone(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: Architecture,
    target: Architecture,
    *,
    anew: tuple[str, ...] = ("head.", "fc_norm.", "norm."),
) -> Transfer:
    """Loads `tensors` of a `source` model into `model`, which is a `target`.

    Args:
        anew: Beginnings of the names that keep their initialisation; none where the same task goes on.

    Raises:
        StorageError: A tensor of the backbone is missing or of another shape.
    """
    if source.patch_size != target.patch_size:
        raise StorageError(
            f"The checkpoint's patches are {source.patch_size} pixels, the model's {target.patch_size}.",
            f"Pass --patch-size {source.patch_size}.",
        )
    expanded = expand_shared_bias(tensors, target.depth) if target.positions == "per-block" else dict(tensors)
    fitted, resized = resize_to(expanded, source, target)
    wanted = model.state_dict()
    usable = {name: t for name, t in fitted.items() if name in wanted and not name.startswith(anew or "\0")}
    fresh = tuple(name for name in wanted if name not in usable)
    absent = [name for name in fresh if not name.startswith((*anew, "token_head.", "mask_token"))]
    misfit = [name for name, tensor in usable.items() if tensor.shape != wanted[name].shape]
    if absent or misfit:
        first = (absent or misfit)[0]
        raise StorageError(
            f"The checkpoint does not fit this model: {len(absent)} tensors missing, {len(misfit)} of another shape "
            f"(first: {first}).",
            "Check with `beit inspect` that it is a BEiT of the same size.",
        )
    model.load_state_dict(usable, strict=False)
    dropped = tuple(name for name in tensors if name not in usable and not name.startswith("rel_pos_bias."))
    return Transfer(tuple(usable), tuple(resized), dropped, fresh)
