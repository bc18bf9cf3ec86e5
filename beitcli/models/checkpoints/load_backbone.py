"""Loads backbone weights into a network: pretraining to finetuning, one image size to another.

As in the release: the shared bias table is copied into every block, index buffers are rebuilt, bias tables and position
embeddings are resized (bilinearly where that is chosen), the pretraining `norm` is not used for `fc_norm`, and the head
keeps its new initialization.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import torch
from timm.layers import resample_abs_pos_embed
from torch import nn

from beitcli.config.architecture import Architecture
from beitcli.config.resizing import DEFAULT, Resizing
from beitcli.errors import StorageError
from beitcli.models.checkpoints.key_mapping import AGGREGATION, by_block
from beitcli.models.checkpoints.resize_positions import resize_bias_table, resize_positions
from beitcli.models.networks.timm_vit import TimmViT
from beitcli.runtime.metric_text import counted

NOT_OF_BACKBONE = ("head.", "fc_norm.", "norm.")  # key prefixes
_BEHIND_THE_BLOCKS = (*NOT_OF_BACKBONE, "head_dist.", "mask_token", "token_head.", *AGGREGATION)
_TABLE = "relative_position_bias_table"


@dataclass(frozen=True)
class Transfer:
    """Report of a load: state-dict keys by what was done with them.

    Attributes:
        loaded: Loaded, including resized ones.
        resized: Interpolated to another grid.
        dropped: Only in the source.
        newly_initialized: Not loaded from the source; they keep their initialization.
    """

    loaded: tuple[str, ...]
    resized: tuple[str, ...]
    dropped: tuple[str, ...]
    newly_initialized: tuple[str, ...]

    def summary(self, kind: str, new_kind: str, of_head: Collection[str] = (), unread: Collection[str] = ()) -> str:
        """Describes the load in a line for the user, with the names of tensors that no head explains.

        Args:
            kind: Of the checkpoint.
            new_kind: Of the model.
            of_head: Further tensors, those of a head that was not read.
            unread: Keys of the file that belong to no part of a model that is known.
        """
        resized = f", {len(self.resized):,} of them resized" if self.resized else ""
        parts = [f"{counted(len(self.loaded), 'tensor')} loaded{resized}"]
        behind = [name for name in self.dropped if name.startswith(_BEHIND_THE_BLOCKS)]
        if number := len(behind) + len(of_head):
            head = "the head of its pretraining" if kind == "masked-image-model" else "what followed its blocks"
            parts.append(f"{head} is dropped ({counted(number, 'tensor')})")
        if self.newly_initialized:
            parts.append(f"the {new_kind}'s head is new ({counted(len(self.newly_initialized), 'tensor')})")
        if others := [*(name for name in self.dropped if name not in behind), *unread]:
            parts.append(f"not used: {', '.join(by_block(others))}")
        return "; ".join(parts)


def expand_shared_bias(tensors: Mapping[str, torch.Tensor], depth: int) -> dict[str, torch.Tensor]:
    """Copies the shared relative position bias table into every block."""
    shared = f"rel_pos_bias.{_TABLE}"
    expanded = {name: tensor for name, tensor in tensors.items() if name != shared}
    if shared in tensors:
        for block in range(depth):
            expanded[f"blocks.{block}.attn.{_TABLE}"] = tensors[shared].clone()
    return expanded


def resize_to(
    tensors: Mapping[str, torch.Tensor], source: Architecture, target: Architecture, how: Resizing = DEFAULT
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Resizes position embeddings and bias tables to the target's grid; also returns the resized keys.

    Raises:
        UsageError: The release's way resizes bias tables between square grids only.
    """
    if source.grid == target.grid:
        return dict(tensors), []
    fitted, resized = {}, []
    for name, tensor in tensors.items():
        if name == "pos_embed":
            tensor = resize_positions(tensor, source.grid, target.grid, how)
            resized.append(name)
        elif name.endswith(_TABLE):
            tensor = resize_bias_table(tensor, source.grid, target.grid, how)
            resized.append(name)
        fitted[name] = tensor
    return fitted, resized


def load_backbone(
    model: nn.Module,
    tensors: Mapping[str, torch.Tensor],
    source: Architecture,
    target: Architecture,
    *,
    reinit: tuple[str, ...] = NOT_OF_BACKBONE,
    how: Resizing = DEFAULT,
) -> Transfer:
    """Loads a state dict into `model`.

    Args:
        tensors: State dict of a model of the `source` architecture.
        target: Architecture of `model`.
        reinit: Key prefixes of tensors that keep their initialization; empty to load the same task's head too.
        how: How position embeddings and bias tables are resized.

    Raises:
        StorageError: A tensor of the backbone is missing or has another shape.
    """
    model_state = model.state_dict()
    if isinstance(model, TimmViT):
        taken = {name: tensor for name, tensor in tensors.items() if name in model_state}
        fitted, resized = _resample_timm(taken, source, target, reinit, how)
        optional = reinit
        refusal = f"The weights do not fit timm's '{model.architecture.name}'"
        hint = "Give the weights as timm writes them, with the config.json beside them."
    else:
        if source.patch_size != target.patch_size:
            raise StorageError(
                f"The checkpoint's patches are {source.patch_size} pixels, the model's {target.patch_size}.",
                f"Pass --patch-size {source.patch_size}.",
            )
        expanded = expand_shared_bias(tensors, target.depth) if target.positions == "per-block" else dict(tensors)
        fitted, resized = resize_to(expanded, source, target, how)
        optional = (*reinit, "token_head.", "mask_token")
        refusal = "The checkpoint does not fit this model"
        hint = "Check with `beit inspect` that it is a BEiT of the same size."
    usable = {name: t for name, t in fitted.items() if name in model_state and not name.startswith(reinit or "\0")}
    newly_initialized = tuple(name for name in model_state if name not in usable)
    absent = [name for name in newly_initialized if not name.startswith(optional or "\0")]
    misfit = [name for name, tensor in usable.items() if tensor.shape != model_state[name].shape]
    if absent or misfit:
        counts = f"{len(absent)} tensors missing, {len(misfit)} of another shape (first: {(absent or misfit)[0]})"
        raise StorageError(f"{refusal}: {counts}.", hint)
    model.load_state_dict(usable, strict=False)
    dropped = tuple(name for name in tensors if name not in usable and not name.startswith("rel_pos_bias."))
    return Transfer(tuple(usable), tuple(resized), dropped, newly_initialized)


def _resample_timm(
    tensors: dict[str, torch.Tensor],
    source: Architecture,
    target: Architecture,
    reinit: tuple[str, ...],
    how: Resizing,
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Like `resize_to`; the number of prefix tokens depends on the model. `release`: timm's antialiased bicubic."""
    name = "pos_embed"
    if name not in tensors or name.startswith(reinit or "\0") or source.grid == target.grid:
        return tensors, []
    prefix = tensors[name].shape[1] - source.num_patches
    resized = resample_abs_pos_embed(
        tensors[name],
        new_size=list(target.grid),
        old_size=list(source.grid),
        num_prefix_tokens=prefix,
        interpolation="bilinear" if how == "bilinear" else "bicubic",
        antialias=how != "bilinear",
    )
    return tensors | {name: resized}, [name]
