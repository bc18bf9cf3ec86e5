"""The recomputed attention against timm's own unfused product and against transformers."""

from __future__ import annotations

import pytest
import torch
from timm.models.beit import Attention, Beit, Block
from transformers import BeitConfig, BeitModel

from beitcli.config.architecture import Architecture, Positions
from beitcli.errors import UsageError
from beitcli.models.networks.attention_maps import attention_by_layer, attention_rows, block_index, next_rollout
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier

POSITIONS: tuple[Positions, ...] = ("absolute", "shared", "per-block")
TRANSFORMERS = {
    "absolute": "use_absolute_position_embeddings",
    "shared": "use_shared_relative_position_bias",
    "per-block": "use_relative_position_bias",
}


def tiny(positions: Positions = "per-block", layer_scale: float = 0.1) -> Architecture:
    return Architecture(image_size=(64, 64), width=48, depth=3, heads=4, positions=positions, layer_scale=layer_scale)


def classifier(positions: Positions = "per-block") -> Classifier:
    """Every parameter random, biases and tables included, so that none can be forgotten unseen."""
    torch.manual_seed(1)
    model = Classifier(tiny(positions), 5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.3)
    return model.eval()


def pictures() -> torch.Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def to_transformers(model: Classifier, positions: Positions) -> BeitModel:
    flags = {flag: flag == TRANSFORMERS[positions] for flag in TRANSFORMERS.values()}
    config = BeitConfig(
        hidden_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=64,
        layer_norm_eps=1e-6,
        attn_implementation="eager",
        **flags,
    )
    peer = BeitModel(config, add_pooling_layer=False).eval()
    ours = model.state_dict()
    named = {
        "embeddings.cls_token": ours["cls_token"],
        "embeddings.patch_embeddings.projection.weight": ours["patch_embed.proj.weight"],
        "embeddings.patch_embeddings.projection.bias": ours["patch_embed.proj.bias"],
    }
    if positions == "absolute":
        named["embeddings.position_embeddings"] = ours["pos_embed"]
    table = "relative_position_bias_table"
    if positions == "shared":
        named[f"shared_position_bias.{table}"] = ours[f"rel_pos_bias.{table}"]
    for layer in range(3):
        block, there = f"blocks.{layer}.", f"layers.{layer}."
        query, key, value = ours[block + "attn.qkv.weight"].chunk(3)
        named |= {
            there + "attention.q_proj.weight": query,
            there + "attention.k_proj.weight": key,
            there + "attention.v_proj.weight": value,
            there + "attention.q_proj.bias": ours[block + "attn.q_bias"],
            there + "attention.v_proj.bias": ours[block + "attn.v_bias"],
            there + "lambda_1": ours[block + "gamma_1"],
            there + "lambda_2": ours[block + "gamma_2"],
        }
        modules = {"attention.o_proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2"}
        for name, source in (modules | {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}).items():
            named |= {f"{there}{name}.{kind}": ours[f"{block}{source}.{kind}"] for kind in ("weight", "bias")}
        if positions == "per-block":
            named[f"{there}relative_position_bias.{table}"] = ours[f"{block}attn.{table}"]
    assert set(named) == set(peer.state_dict()) - {"embeddings.mask_token"}
    peer.load_state_dict(named, strict=False)
    return peer


@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_rows_equal_those_of_transformers(positions):
    model = classifier(positions)
    peer = to_transformers(model, positions)
    with torch.no_grad():
        theirs = peer(pictures(), output_attentions=True).attentions
    for layer in (0, -1):
        assert (attention_rows(model, pictures(), layer) - theirs[layer]).abs().max() <= 1e-6


@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_rows_equal_timms_unfused_product(positions):
    model = classifier(positions)
    ours = [attention_rows(model, pictures(), layer) for layer in range(3)]
    seen = []
    for block in model.blocks:
        block.__class__, block.attn.__class__ = Block, Attention  # timm's own forward
        block.attn.fused_attn = False
        block.attn.attn_drop.register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        Beit.forward_features(model, pictures())
    for rows, theirs in zip(ours, seen, strict=True):
        assert (rows - theirs).abs().max() <= 1e-6


def test_attention_rows_sum_to_one_and_differ_by_layer():
    model = classifier()
    rows = attention_rows(model, pictures(), -1)
    assert rows.shape == (2, 4, 17, 17)
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(2, 4, 17))
    assert torch.equal(rows, attention_rows(model, pictures(), 2))
    assert not torch.allclose(rows, attention_rows(model, pictures(), 1), atol=1e-3)


@pytest.mark.parametrize("positions", POSITIONS)
def test_chosen_queries_are_rows_of_the_whole(positions):
    model = classifier(positions)
    whole = attention_rows(model, pictures(), 1)
    torch.testing.assert_close(attention_rows(model, pictures(), 1, [5, 0, 5]), whole[:, :, [5, 0, 5]])


def test_the_model_stays_as_it_was():
    model = classifier()
    before = [block.attn.fused_attn for block in model.blocks]
    with torch.no_grad():
        output = model(pictures())
    attention_rows(model, pictures(), 0)
    assert [block.attn.fused_attn for block in model.blocks] == before
    assert not any(block.attn._forward_pre_hooks for block in model.blocks)
    with torch.no_grad():
        assert torch.equal(model(pictures()), output)


def test_blocks_behind_the_one_looked_into_are_not_run():
    model = classifier()
    expected = attention_rows(model, pictures(), 1)
    model.blocks[2].forward = None
    assert torch.equal(attention_rows(model, pictures(), 1), expected)


def test_attention_of_a_pretraining_model_is_that_of_its_backbone():
    torch.manual_seed(3)
    model = MaskedImageModel(tiny("shared"), 64).eval()
    rows = attention_rows(model, pictures())
    backbone = Classifier(tiny("shared"), 0).eval()
    backbone.load_state_dict(model.state_dict(), strict=False)
    assert torch.equal(rows, attention_rows(backbone, pictures()))


def test_attention_is_float32_under_autocast():
    model = classifier()
    with torch.autocast("cpu", torch.bfloat16):
        rows = attention_rows(model, pictures())
    assert rows.dtype == torch.float32
    torch.testing.assert_close(rows.sum(dim=-1), torch.ones(2, 4, 17))


@pytest.mark.parametrize("layer", [3, -4, 99])
def test_a_layer_that_is_not_there_is_refused_with_the_range(layer):
    with pytest.raises(UsageError) as caught:
        attention_rows(classifier(), pictures(), layer)
    assert str(layer) in caught.value.message
    assert "3 blocks" in caught.value.message
    assert "0 to 2" in caught.value.hint


def test_block_index_counts_from_the_end():
    assert [block_index(classifier(), layer) for layer in (0, 2, -1, -3)] == [0, 2, 2, 0]


@pytest.mark.parametrize("positions", POSITIONS)
def test_attention_by_layer_equals_that_of_each_block(positions):
    model = classifier(positions)
    layers = list(attention_by_layer(model, pictures()))
    assert len(layers) == 3
    for layer, rows in enumerate(layers):
        torch.testing.assert_close(rows, attention_rows(model, pictures(), layer))
    assert len(list(attention_by_layer(model, pictures(), 1))) == 2


def test_rollout_follows_the_residual_connection():
    """Two positions: half identity, then the product, by hand."""
    first = torch.tensor([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [1.0, 0.0]]])  # the mean is 1/2 everywhere
    second = torch.tensor([[[0.0, 1.0], [0.0, 1.0]]])
    once = next_rollout(None, first)
    assert once.tolist() == [[0.75, 0.25], [0.25, 0.75]]
    assert next_rollout(once, second).tolist() == [[0.5, 0.5], [0.25, 0.75]]
