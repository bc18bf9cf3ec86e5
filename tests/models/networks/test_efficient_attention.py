"""EfficientAttention: on a CPU the numbers of its formula bit for bit, one compiled graph, a padded shared bias."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from timm.models.beit import Attention

from beitcli.config.architecture import Architecture
from beitcli.models.networks.attention_maps import attention_rows
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.efficient_attention import _weighted, relative_bias
from beitcli.models.networks.timm_vit import architecture_of, build_timm
from beitcli.runtime.compute.device import Compute

BATCH, HEADS, LENGTH, DIM, ROWS = 3, 2, 13, 16, 5
FORMS = list(product((False, True), (False, True)))  # bias, queries


def model(positions: str) -> MaskedImageModel:
    torch.manual_seed(0)
    architecture = Architecture(image_size=(64, 48), width=32, depth=2, heads=2, positions=positions, layer_scale=0.1)
    made = MaskedImageModel(architecture, 11)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return made.train()


def inputs(dtype: torch.dtype, has_bias: bool, narrow: bool) -> tuple[list[torch.Tensor], torch.Tensor | None]:
    torch.manual_seed(1)
    tensors = [torch.randn(BATCH, HEADS, ROWS if narrow else LENGTH, DIM).to(dtype)]
    tensors += [torch.randn(BATCH, HEADS, LENGTH, DIM).to(dtype) for _ in range(2)]
    if has_bias:
        tensors.append(torch.randn(HEADS, LENGTH, LENGTH))
    queries = torch.rand(BATCH, LENGTH).argsort(dim=1)[:, :ROWS] if narrow else None
    return [tensor.requires_grad_() for tensor in tensors], queries


def mask_of(bias: torch.Tensor, queries: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor:
    """(B, heads, R, L): the bias gathered in its own type, then rounded, then expanded."""
    if queries is not None:
        bias = bias.transpose(0, 1)[queries].transpose(1, 2)
    return bias.to(dtype).expand(BATCH, -1, -1, -1)


@pytest.mark.parametrize(("has_bias", "narrow"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_under_autograd_on_a_cpu_is_the_formula_bit_for_bit(dtype, has_bias, narrow):
    tensors, queries = inputs(dtype, has_bias, narrow)
    query, key, value = tensors[:3]
    out = _weighted(query, key, value, tensors[3] if has_bias else None, queries)
    scores = (query * DIM**-0.5) @ key.transpose(-2, -1)
    if has_bias:
        scores = scores + mask_of(tensors[3], queries, dtype)
    expected = scores.softmax(dim=-1) @ value
    assert torch.equal(out, expected)
    gradient = torch.randn(out.shape).to(dtype)
    ours = torch.autograd.grad(out, tensors, gradient)
    for each, wanted in zip(ours, torch.autograd.grad(expected, tensors, gradient), strict=True):
        assert torch.equal(each, wanted)


@pytest.mark.parametrize(("has_bias", "narrow"), FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_without_gradients_on_a_cpu_is_torchs_bit_for_bit(dtype, has_bias, narrow):
    tensors, queries = inputs(dtype, has_bias, narrow)
    with torch.no_grad():
        mask = mask_of(tensors[3], queries, dtype) if has_bias else None
        expected = F.scaled_dot_product_attention(*tensors[:3], attn_mask=mask)
        assert torch.equal(_weighted(*tensors[:3], tensors[3] if has_bias else None, queries), expected)


@pytest.mark.slow
@pytest.mark.parametrize("positions", ["absolute", "shared", "padded", "per-block"])
def test_a_model_is_one_compiled_graph(positions):
    """The first block computes all rows, the last one some."""
    torch._dynamo.reset()
    ours, images = model("shared" if positions == "padded" else positions), torch.randn(BATCH, 3, 64, 48)
    if positions == "padded":
        ours.pads_bias = True
    predicted = torch.rand(BATCH, 12).argsort(dim=1)[:, :ROWS]
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    gradients = []
    for forward in (compiled, ours):
        ours.zero_grad()
        forward(images, None, predicted).square().mean().backward()
        gradients.append([each.grad for each in ours.parameters() if each.grad is not None])
    for each, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(each, expected)


def test_a_padded_shared_bias_gives_the_same_logits_gradients_and_maps():
    ours, images = model("shared"), torch.randn(BATCH, 3, 64, 48)
    predicted = torch.rand(BATCH, 12).argsort(dim=1)[:, :ROWS]
    padded = copy.deepcopy(ours)
    padded.pads_bias = True
    assert padded.shared_bias().shape == (2, 13, 16)
    found = []
    for each in (ours, padded):
        logits = each(images, None, predicted)
        logits.square().mean().backward()
        maps = attention_rows(each, images, 1, queries=[0, 3])
        found.append((logits, each.rel_pos_bias.relative_position_bias_table.grad, maps))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


def test_nothing_is_chosen_off_cuda():
    flags = torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()
    ours, compute = model("shared"), Compute(torch.device("cpu"), "bf16")
    assert ours.choose_attention(4, compute) is None
    assert ours.choose_attention(4, compute, queries=5) is None
    assert not ours.pads_bias
    assert not any(block.attn.use_flex for block in ours.blocks)
    assert (torch.backends.cuda.flash_sdp_enabled(), torch.backends.cuda.cudnn_sdp_enabled()) == flags
    theirs = build_timm(architecture_of("vit_tiny_patch16_224", {}, (32, 32)), 0)
    assert theirs.choose_attention(4, compute) is None


@pytest.mark.parametrize("grid", [(3, 4), (14, 14)], ids=str)
def test_the_bias_of_a_table_and_its_gradient_are_timms_bit_for_bit(grid):
    torch.manual_seed(2)
    attention = Attention(24, num_heads=3, window_size=grid, qkv_bias=True)
    table = attention.relative_position_bias_table
    with torch.no_grad():
        table.normal_()
    weights = torch.randn(3, *attention.relative_position_index.shape)
    gradients = []
    for bias in (attention._get_rel_pos_bias()[0], relative_bias(table, attention.relative_position_index)):
        assert bias.is_contiguous()
        gradients.append((bias, torch.autograd.grad((bias * weights).sum(), table)[0]))
    (expected, expected_gradient), (bias, gradient) = gradients
    assert torch.equal(bias, expected)
    assert torch.equal(gradient, expected_gradient)
