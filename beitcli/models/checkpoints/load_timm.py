"""Weights into timm's Vision Transformers."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from timm.layers import resample_abs_pos_embed

from beitcli.config.architecture import Architecture
from beitcli.errors import StorageError
from beitcli.models.checkpoints.load_backbone import Transfer
from beitcli.models.networks.timm_vit import TimmViT


def load_timm(
    model: TimmViT,
    tensors: Mapping[str, torch.Tensor],
    source: Architecture,
    *,
    anew: tuple[str, ...] = (),
) -> Transfer:
    """Loads timm's weights, positions resampled by timm where the grid is another.

    Args:
        source: What they are of.
        anew: Beginnings of the names that keep their initialisation.

    Raises:
        StorageError: A tensor is missing or of another shape.
    """
    wanted = model.state_dict()
    usable = {name: t for name, t in tensors.items() if name in wanted and not name.startswith(anew or "\0")}
    resized: tuple[str, ...] = ()
    grid = model.architecture.grid
    if "pos_embed" in usable and source.grid != grid:
        there = usable["pos_embed"].shape[1] - source.num_patches
        usable["pos_embed"] = resample_abs_pos_embed(
            usable["pos_embed"], new_size=list(grid), old_size=list(source.grid), num_prefix_tokens=there
        )
        resized = ("pos_embed",)
    fresh = tuple(name for name in wanted if name not in usable)
    absent = [name for name in fresh if not name.startswith(anew or "\0")]
    misfit = [name for name, tensor in usable.items() if tensor.shape != wanted[name].shape]
    if absent or misfit:
        first = (absent or misfit)[0]
        raise StorageError(
            f"The weights do not fit timm's '{model.architecture.name}': {len(absent)} tensors missing, "
            f"{len(misfit)} of another shape (first: {first}).",
            "Give the weights as timm writes them, with the config.json beside them.",
        )
    model.load_state_dict(usable, strict=False)
    dropped = tuple(name for name in tensors if name not in usable)
    return Transfer(tuple(usable), resized, dropped, fresh)
