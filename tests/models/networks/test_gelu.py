"""The GELU of compiled GPU code, whose formulas run anywhere."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beitcli.models.networks.blocks import Backbone
from beitcli.models.networks.gelu import GELU, _PolynomialGELU, polynomial_gelu, polynomial_gelu_derivative


def exact(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its derivative in float64."""
    x = x.double()
    cumulative = 0.5 * (1 + torch.erf(x / math.sqrt(2)))
    return x * cumulative, cumulative + x * torch.exp(-x * x / 2) / math.sqrt(2 * math.pi)


def test_values_and_derivatives_are_as_near_as_fp32_is():
    x = torch.linspace(-12, 12, 200_001)
    value, derivative = exact(x)
    torchs = (F.gelu(x).double() - value).abs().max()
    assert (polynomial_gelu(x).double() - value).abs().max() < min(2 * torchs, 1e-6)
    assert (polynomial_gelu_derivative(x).double() - derivative).abs().max() < 1e-6


@pytest.mark.parametrize("scale", [1, 3])
def test_bf16_is_rounded_no_worse_than_by_torch(scale):
    x = (scale * torch.randn(200_000, generator=torch.Generator().manual_seed(1))).bfloat16()
    rounded = exact(x)[0].bfloat16()
    assert (polynomial_gelu(x) == rounded).float().mean() >= (F.gelu(x) == rounded).float().mean()


def test_infinities_and_nan_stay_what_they_are():
    x = torch.tensor([float("inf"), float("nan"), 0.0, 1e30, -1e30])
    made = polynomial_gelu(x)
    assert made[0] == float("inf")
    assert made[1].isnan()
    assert made[2:].tolist() == [0.0, pytest.approx(1e30), 0.0]


def test_the_gradient_in_a_graph_is_the_formula():
    x = torch.randn(64, dtype=torch.bfloat16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    traced = torch.compile(lambda x: _PolynomialGELU.apply(x), backend="aot_eager", fullgraph=True)
    gradient = torch.randn(64, generator=torch.Generator().manual_seed(3)).bfloat16()
    (found,) = torch.autograd.grad(traced(x), x, gradient)
    assert torch.equal(found, (gradient.float() * polynomial_gelu_derivative(x.detach())).bfloat16())


def test_a_model_has_it_and_computes_torchs_gelu_on_a_cpu():
    blocks = Backbone(img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2).blocks
    assert all(isinstance(block.mlp.act, GELU) for block in blocks)
    x = torch.randn(8).bfloat16()
    assert torch.equal(GELU()(x), nn.GELU()(x))
    assert torch.equal(torch.compile(GELU(), backend="aot_eager", fullgraph=True)(x), nn.GELU()(x))
