"""Files of plain vision Transformers with random weights, in the layouts of DeiT, DINO, MoCo v3 and MAE."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tests.helpers.foreign_models import randomized

SHAPE: dict[str, Any] = {"img_size": 32, "patch_size": 8, "embed_dim": 192, "depth": 2, "num_heads": 3}
Tensors = dict[str, torch.Tensor]


def small_vit(name: str = "vit_tiny_patch16_224", **arguments: Any) -> nn.Module:
    """timm's model with random weights, without a head unless `num_classes` is given."""
    return randomized(timm.create_model(name, **SHAPE | {"num_classes": 0} | arguments))


def prefixed(prefix: str, tensors: Tensors) -> Tensors:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def others(tensors: Tensors) -> Tensors:
    """The weights of another network of the same shape, which must not be taken."""
    return {name: tensor + 1 for name, tensor in tensors.items()}


def deit(model: nn.Module) -> dict[str, Any]:
    return {"model": model.state_dict()}


def bare(model: nn.Module) -> dict[str, Any]:
    return dict(model.state_dict())


def moco_v3(model: nn.Module) -> dict[str, Any]:
    """A pretraining checkpoint as from DistributedDataParallel: both encoders with projectors, and the predictor."""
    tensors, projector = model.state_dict(), {"head.0.weight": torch.ones(4, 192), "head.1.weight": torch.ones(4)}
    encoders = prefixed("base_encoder.", tensors | projector) | prefixed("momentum_encoder.", others(tensors))
    state = prefixed("module.", encoders | {"predictor.0.weight": torch.ones(4, 4)})
    names = {192: "vit_tiny", 384: "vit_small", 768: "vit_base"}
    return {"epoch": 300, "arch": names[model.embed_dim], "state_dict": state, "optimizer": {}, "scaler": {}}


def dino(model: nn.Module) -> dict[str, Any]:
    """A full checkpoint: student under DistributedDataParallel, teacher, projection heads, `args`."""
    tensors = model.state_dict()
    head = {"head.mlp.0.weight": torch.ones(4, 192), "head.last_layer.weight_g": torch.ones(4, 1)}
    return {
        "student": prefixed("module.", prefixed("backbone.", others(tensors)) | head),
        "teacher": prefixed("backbone.", tensors) | head,
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_tiny", patch_size=8),
        "dino_loss": {"center": torch.zeros(1, 4)},
    }


def mae(model: nn.Module) -> dict[str, Any]:
    """A pretraining checkpoint with its decoder, whose width is another."""
    decoder = {
        "mask_token": torch.ones(1, 1, 128),
        "decoder_pos_embed": torch.ones(1, 17, 128),
        "decoder_embed.weight": torch.ones(128, 192),
        "decoder_blocks.0.attn.qkv.bias": torch.ones(384),
        "decoder_pred.bias": torch.ones(192),
    }
    return {"model": dict(model.state_dict()) | decoder, "args": argparse.Namespace(model="mae_vit_tiny_patch8")}


LAYOUTS = {"vit": deit, "moco-v3": moco_v3, "dino": dino, "mae": mae}


def save(document: dict[str, Any], path: Path, *, legacy: bool = False) -> Path:
    torch.save(document, path, _use_new_zipfile_serialization=not legacy)
    return path
