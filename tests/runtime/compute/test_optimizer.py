"""Parameter groups, learning rates a layer, and the optimizer's state on its way through a file."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from beitcli.config.architecture import Architecture, Positions
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier
from beitcli.runtime.compute.optimizer import (
    load_optimizer_tensors,
    make_adamw,
    optimizer_tensors,
    parameter_groups,
    set_learning_rate,
)
from beitcli.runtime.storage.checkpoint import load_tensors, save_checkpoint

CPU = torch.device("cpu")
DEPTH = 3


def tiny(positions: Positions = "shared") -> Architecture:
    return Architecture(image_size=(32, 32), width=24, depth=DEPTH, heads=2, positions=positions, layer_scale=0.1)


def placed(model: nn.Module, groups: list[dict]) -> dict[str, dict]:
    """Parameter name to its group; every parameter stands in exactly one."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    found = [names[id(parameter)] for group in groups for parameter in group["params"]]
    assert sorted(found) == sorted(names.values())
    return {names[id(parameter)]: group for group in groups for parameter in group["params"]}


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_matrices_decay_and_vectors_positions_and_class_token_do_not(positions):
    model = MaskedImageModel(tiny(positions), 16)
    groups = placed(model, parameter_groups(model, 0.05))
    spared = {"pos_embed", "cls_token"}
    for name, parameter in model.named_parameters():
        decays = parameter.ndim > 1 and name not in spared
        assert groups[name]["weight_decay"] == (0.05 if decays else 0.0), name
    assert groups["mask_token"]["weight_decay"] == 0.05  # as in the release
    assert groups["blocks.0.attn.q_bias"]["weight_decay"] == groups["blocks.0.gamma_1"]["weight_decay"] == 0.0


@pytest.mark.parametrize("decays", [True, False])
def test_bias_tables_decay_as_in_the_release_unless_they_are_exempt(decays):
    model = Classifier(tiny("per-block"), 3)
    for layer_decay in (1.0, 0.65):
        groups = placed(model, parameter_groups(model, 0.05, layer_decay, decay_bias_tables=decays))
        assert groups["blocks.1.attn.relative_position_bias_table"]["weight_decay"] == (0.05 if decays else 0.0)
        assert groups["blocks.1.attn.proj.weight"]["weight_decay"] == 0.05
        assert groups["head.weight"]["weight_decay"] == 0.05


@pytest.mark.parametrize("positions", ["absolute", "per-block"])
def test_layer_decay_scales_by_the_distance_to_the_head(positions):
    model = Classifier(tiny(positions), 3)
    groups = placed(model, parameter_groups(model, 0.05, layer_decay=0.5))
    for name, group in groups.items():
        if name.startswith("blocks."):
            layer = int(name.split(".")[1]) + 1
        else:
            layer = 0 if name.startswith(("cls_token", "pos_embed", "patch_embed")) else DEPTH + 1
        assert group["lr_scale"] == pytest.approx(0.5 ** (DEPTH + 1 - layer)), name
    assert groups["head.weight"]["lr_scale"] == groups["fc_norm.weight"]["lr_scale"] == 1.0
    assert groups["patch_embed.proj.weight"]["lr_scale"] == 0.0625


def test_set_learning_rate_respects_the_scale_of_each_group():
    model = Classifier(tiny("per-block"), 3)
    optimizer = make_adamw(parameter_groups(model, 0.05, layer_decay=0.5), 1.0, (0.9, 0.999), CPU)
    set_learning_rate(optimizer, 4e-3)
    groups = placed(model, optimizer.param_groups)
    assert groups["head.weight"]["lr"] == 4e-3
    assert groups["blocks.2.mlp.fc1.weight"]["lr"] == pytest.approx(2e-3)
    assert groups["cls_token"]["lr"] == pytest.approx(0.25e-3)
    plain = torch.optim.AdamW(nn.Linear(2, 2).parameters(), lr=1.0)
    set_learning_rate(plain, 0.3)
    assert plain.param_groups[0]["lr"] == 0.3


def test_first_adamw_step_moves_by_the_learning_rate_and_the_decay():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data = torch.tensor([[1.0, -2.0]])
    optimizer = make_adamw([{"params": [layer.weight], "weight_decay": 0.1}], 0.01, (0.9, 0.98), CPU)
    layer.weight.grad = torch.tensor([[3.0, -0.5]])
    optimizer.step()
    # Bias-corrected, the first step is lr * sign(gradient), after the weight shrank by lr * decay.
    assert layer.weight.flatten().tolist() == pytest.approx([1.0 * 0.999 - 0.01, -2.0 * 0.999 + 0.01], abs=1e-6)


def take_steps(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()


def test_optimizer_state_goes_through_a_file_bit_for_bit(tmp_path):
    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = Classifier(tiny("per-block"), 3)
        return model, make_adamw(parameter_groups(model, 0.05, layer_decay=0.5), 1e-3, (0.9, 0.999), CPU)

    model, optimizer = fresh()
    take_steps(model, optimizer, range(3))
    saved = optimizer_tensors(model, optimizer)
    assert len(saved) == 3 * len(list(model.parameters()))
    assert float(saved["head.weight/step"]) == 3
    path = save_checkpoint(tmp_path, 3, model=model.state_dict(), config={}, trainer_tensors=saved, trainer={}, keep=1)
    take_steps(model, optimizer, range(3, 5))

    again, its_optimizer = fresh()
    again.load_state_dict(load_tensors(path / "model.safetensors"))
    load_optimizer_tensors(again, its_optimizer, load_tensors(path / "trainer.safetensors"))
    take_steps(again, its_optimizer, range(3, 5))
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    after, its_after = optimizer_tensors(model, optimizer), optimizer_tensors(again, its_optimizer)
    assert set(after) == set(its_after)
    assert all(torch.equal(after[name], its_after[name]) for name in after)


def test_loaded_state_has_the_layout_of_channels_last_weights(tmp_path):
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))

    def fresh() -> tuple[nn.Module, torch.optim.Optimizer]:
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        return model, make_adamw(parameter_groups(model, 0.05), 1e-2, (0.9, 0.99), CPU)

    def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        model(images).square().sum().backward()
        optimizer.step()

    model, optimizer = fresh()
    step(model, optimizer)
    saved = {"model": model.state_dict(), "trainer": optimizer_tensors(model, optimizer)}
    path = save_checkpoint(
        tmp_path, 1, model=saved["model"], config={}, trainer_tensors=saved["trainer"], trainer={}, keep=1
    )
    again, its_optimizer = fresh()
    again.load_state_dict(load_tensors(path / "model.safetensors"))
    load_optimizer_tensors(again, its_optimizer, load_tensors(path / "trainer.safetensors"))
    assert its_optimizer.state[again.weight]["exp_avg"].stride() == again.weight.stride()
    step(model, optimizer)
    step(again, its_optimizer)
    assert torch.equal(model.weight, again.weight)
