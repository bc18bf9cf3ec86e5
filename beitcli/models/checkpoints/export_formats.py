"""Converts weights and configs to the formats of other programs, for `export` and for classifiers that timm can open.

The release's checkpoints contain the index buffers of the relative position bias tables, so `to_official` adds them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from timm.models.beit import gen_relative_position_index

from beitcli.config.architecture import Aggregation, Architecture, Pooling
from beitcli.config.eval_crop import EvalCrop
from beitcli.config.normalization import Normalization
from beitcli.config.problem import TRANSFORMERS_NAMES, Problem
from beitcli.models.checkpoints.key_mapping import AGGREGATION, hf_names
from beitcli.models.networks.timm_vit import TimmArchitecture

Tensors = dict[str, torch.Tensor]

HF_CLASSES = {
    "masked-image-model": "BeitForMaskedImageModeling",
    "classifier": "BeitForImageClassification",
    "backbone": "BeitModel",
}


def _one_or_two(size: tuple[int, int]) -> int | list[int]:
    return size[0] if size[0] == size[1] else list(size)


def timm_settings(
    architecture: Architecture,
    *,
    classes: Sequence[str],
    pooling: Pooling,
    normalization: Normalization,
    crop: EvalCrop,
    problem: Problem = "single-label",
) -> dict[str, Any]:
    """Returns config.json in the format of `timm.create_model("local-dir:...")`.

    Args:
        classes: Class names in the order of the outputs; empty for a backbone without a head.
        pooling: For a backbone, `token`, which keeps `norm`.
        crop: Resizing and cropping in evaluation.
    """
    size = "large" if architecture.width >= 1024 else "base"
    pool = "avg" if pooling == "mean" else "token"
    name, arguments = f"beit_{size}_patch16_224", _beit_arguments(architecture, pool)  # overrides all of its defaults
    if isinstance(architecture, TimmArchitecture):
        name, arguments = architecture.name, architecture.arguments
    return {
        "architecture": name,
        "num_classes": len(classes),
        "num_features": architecture.width,
        "global_pool": pool,
        "model_args": {"img_size": list(architecture.image_size), **arguments},
        "pretrained_cfg": {
            "num_classes": len(classes),
            "fixed_input_size": True,
            "pool_size": None,
            **timm_preprocessing(architecture.image_size, normalization, crop),
            "first_conv": "patch_embed.proj",
            "classifier": "head",
        },
        "label_names": list(classes),
        **_problem_type(problem),
    }


def timm_preprocessing(size: tuple[int, int], normalization: Normalization, crop: EvalCrop) -> dict[str, Any]:
    """Returns the part of timm's `pretrained_cfg` that says what becomes of an image; `size` (H, W) is the model's."""
    return {
        "input_size": [3, *size],
        "crop_pct": crop.pct(size),
        **({} if crop.crop_mode == "center" else {"crop_mode": crop.crop_mode}),
        "interpolation": crop.interpolation,
        "mean": list(normalization[0]),
        "std": list(normalization[1]),
    }


def _problem_type(problem: Problem) -> dict[str, str]:
    """Returns transformers' setting, for outputs of which the softmax is not meant; timm ignores it."""
    return {} if problem == "single-label" else {"problem_type": TRANSFORMERS_NAMES[problem]}


def _beit_arguments(architecture: Architecture, pool: str) -> dict[str, Any]:
    return {
        "patch_size": architecture.patch_size,
        "embed_dim": architecture.width,
        "depth": architecture.depth,
        "num_heads": architecture.heads,
        "mlp_ratio": architecture.mlp_ratio,
        "init_values": architecture.layer_scale,
        "use_abs_pos_emb": architecture.positions == "absolute",
        "use_rel_pos_bias": architecture.positions == "per-block",
        "use_shared_rel_pos_bias": architecture.positions == "shared",
        "global_pool": pool,
    }


def hf_settings(
    architecture: Architecture,
    kind: str,
    *,
    outputs: int,
    classes: Sequence[str],
    pooling: Pooling,
    has_mask_token: bool,
    problem: Problem = "single-label",
) -> dict[str, Any]:
    """Returns config.json in the format of `transformers.BeitConfig`."""
    labels = list(classes) if kind == "classifier" else ["LABEL_0", "LABEL_1"]
    return {
        "model_type": "beit",
        "architectures": [HF_CLASSES[kind]],
        "hidden_size": architecture.width,
        "num_hidden_layers": architecture.depth,
        "num_attention_heads": architecture.heads,
        "intermediate_size": round(architecture.width * architecture.mlp_ratio),
        "hidden_act": "gelu",
        "image_size": _one_or_two(architecture.image_size),
        "patch_size": architecture.patch_size,
        "num_channels": 3,
        "layer_norm_eps": architecture.norm_eps,
        "layer_scale_init_value": architecture.layer_scale,
        "use_mask_token": has_mask_token,
        "use_absolute_position_embeddings": architecture.positions == "absolute",
        "use_relative_position_bias": architecture.positions == "per-block",
        "use_shared_relative_position_bias": architecture.positions == "shared",
        "use_mean_pooling": pooling == "mean",
        "vocab_size": outputs if kind == "masked-image-model" else 8192,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "drop_path_rate": 0.0,
        "id2label": {str(number): name for number, name in enumerate(labels)},
        "label2id": {name: number for number, name in enumerate(labels)},
        "dtype": "float32",
        **_problem_type(problem),
    }


def official_settings(
    architecture: Architecture,
    *,
    classes: Sequence[str],
    normalization: Normalization,
    crop: EvalCrop,
    aggregation: Aggregation | None = None,
    problem: Problem = "single-label",
) -> dict[str, Any]:
    """Returns the `args` that our reader cannot derive from the tensors; the release's code ignores them."""
    aggregated = {}
    if aggregation is not None:
        aggregated = {"head_layers": aggregation.blocks, "shared_lm_head": aggregation.head == "shared"}
        aggregated |= {"early_layers": aggregation.after} if aggregation.after else {}
    return {
        **aggregated,
        "num_heads": architecture.heads,
        "input_size": list(architecture.image_size),
        "layer_scale_init_value": architecture.layer_scale,
        "layer_norm_eps": architecture.norm_eps,
        "mean": list(normalization[0]),
        "std": list(normalization[1]),
        **crop.settings(),
        "crop_share": crop.pct(architecture.image_size),
        "class_names": list(classes),
        **_problem_type(problem),
    }


def to_hf(tensors: Mapping[str, torch.Tensor], kind: str) -> Tensors:
    """Maps a state dict to Hugging Face's keys; splits qkv into query, key and value."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        names = hf_names(name, kind)
        out |= zip(names, (part.contiguous() for part in tensor.chunk(len(names))), strict=True)
    return out


def to_official(tensors: Mapping[str, torch.Tensor], architecture: Architecture) -> Tensors:
    """Maps a state dict to the release's keys and adds its index buffers."""
    out: Tensors = {}
    for name, tensor in tensors.items():
        out[name.replace("token_head.", "lm_head.")] = tensor
        if name.endswith("relative_position_bias_table"):
            buffer = name.replace("relative_position_bias_table", "relative_position_index")
            out[buffer] = gen_relative_position_index(architecture.grid)
    return out


def to_timm(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Drops mask token, token head and patch aggregation, which timm's model does not have."""
    dropped = ("mask_token", "token_head.", *AGGREGATION)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(dropped)}


def without_aggregation(tensors: Mapping[str, torch.Tensor]) -> Tensors:
    """Drops patch aggregation, which transformers' model does not have."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(AGGREGATION)}
