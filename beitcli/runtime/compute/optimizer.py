"""AdamW with timm's parameter groups, and its state as named tensors."""

from __future__ import annotations

from typing import Any

import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from beitcli.runtime.deferred_compiler import compiler_stand_ins
from beitcli.runtime.distributed.fsdp import distribute_like

_BIAS_TABLE = "relative_position_bias_table"


def parameter_groups(
    model: nn.Module, weight_decay: float, layer_decay: float = 1.0, *, decay_bias_tables: bool = True
) -> list[dict[str, Any]]:
    """Returns timm's parameter groups; `lr_scale` = layer_decay^(L + 1 - layer).

    Vectors, positional encodings, the class token and what the model's `no_weight_decay` names are not decayed.

    Args:
        decay_bias_tables: Decays relative position bias tables, as the release does; timm's Beit exempts them.
    """
    named = set(model.no_weight_decay()) if hasattr(model, "no_weight_decay") else set()  # type: ignore[operator]
    tables = {name for name, _ in model.named_parameters() if name.endswith(_BIAS_TABLE)}
    spared = tuple(named - tables if decay_bias_tables else named | tables)
    if layer_decay == 1.0:
        return param_groups_weight_decay(model, weight_decay, no_weight_decay_list=spared)
    return param_groups_layer_decay(model, weight_decay, no_weight_decay_list=spared, layer_decay=layer_decay)


class AdamW(torch.optim.AdamW):
    """torch's, which would load the compiler in its first step to keep it out of this one.

    Sharded tensors need the compiler, which FSDP's hooks load in the first forward pass.
    """

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        with compiler_stand_ins():
            super().add_param_group(param_group)

    def zero_grad(self, set_to_none: bool = True) -> None:
        with compiler_stand_ins():
            super().zero_grad(set_to_none)

    def step(self, closure: Any = None) -> Any:
        with compiler_stand_ins():
            return super().step(closure)


def make_adamw(groups: list[dict[str, Any]], lr: float, betas: tuple[float, float], device: torch.device) -> AdamW:
    """Builds AdamW, fused on CUDA and on the CPU."""
    return AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=device.type in ("cuda", "cpu"))


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_scale", 1.0)


def optimizer_tensors(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Returns the optimizer's state as `PARAMETER/KEY` -> tensor, independent of the order of the groups."""
    tensors = {}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}/{key}"] = torch.as_tensor(value)
    return tensors


def load_optimizer_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor]
) -> None:
    """Loads the state that `optimizer_tensors` returned."""
    parameters = dict(model.named_parameters())
    for full_name, tensor in tensors.items():
        name, key = full_name.rsplit("/", 1)
        parameter = parameters[name]
        if tensor.shape not in (parameter.shape, ()):
            raise RuntimeError(
                f"{full_name} is of shape {tuple(tensor.shape)}, its parameter of {tuple(parameter.shape)}"
            )
        target = parameter.device if tensor.shape == parameter.shape else torch.device("cpu")
        if key == "step" and optimizer.defaults.get("fused"):
            target = parameter.device
        tensor = tensor.to(target)
        if tensor.shape == parameter.shape:
            tensor = _laid_out_like(parameter, distribute_like(tensor, parameter))
        optimizer.state[parameter][key] = tensor


def _laid_out_like(parameter: nn.Parameter, tensor: torch.Tensor) -> torch.Tensor:
    """Returns the tensor with the parameter's strides: the fused AdamW walks through both in the order of memory."""
    if tensor.stride() == parameter.stride():
        return tensor
    return torch.empty_like(parameter, dtype=tensor.dtype, requires_grad=False).copy_(tensor)
