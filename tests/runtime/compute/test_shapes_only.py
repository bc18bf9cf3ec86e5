"""Modules without values: the shapes and types of real ones, then memory on the CPU."""

from __future__ import annotations

import torch
from torch import nn

from beitcli.runtime.compute.shapes_only import give_memory, shapes_only


def build() -> nn.Module:
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(5, 6), nn.LayerNorm(6))
    nn.init.trunc_normal_(module[2].weight, std=0.02)  # type: ignore[arg-type]
    nn.init.kaiming_uniform_(module[2].weight)  # type: ignore[arg-type]
    module[0].weight.data.normal_().mul_(2).clamp_(-1, 1)  # type: ignore[union-attr, operator]
    return module


def test_modules_have_shapes_and_no_memory() -> None:
    with shapes_only():
        module = build()
    real = build().state_dict()
    assert {name: (each.shape, each.dtype) for name, each in module.state_dict().items()} == {
        name: (each.shape, each.dtype) for name, each in real.items()
    }
    assert all(each.is_meta for each in module.state_dict().values())
    give_memory(module)
    assert all(each.device.type == "cpu" for each in module.state_dict().values())
    assert all(isinstance(each, nn.Parameter) and each.requires_grad for each in module.parameters())
    module.load_state_dict(real)
    assert torch.equal(module.state_dict()["2.weight"], real["2.weight"])


def test_tensors_with_memory_get_their_values() -> None:
    with shapes_only():
        values = torch.ones(3, device="cpu").mul_(2)
        assert nn.init.constant_(torch.empty(2, device="cpu"), 5).tolist() == [5, 5]
    assert values.tolist() == [2, 2, 2]
