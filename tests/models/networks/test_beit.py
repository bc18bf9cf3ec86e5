"""The model: counts, initialisation, what a mask hides, and parity with transformers and timm on random weights."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.beit import Beit
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import BeitConfig, BeitForImageClassification, BeitForMaskedImageModeling

from beitcli.config.architecture import SIZES, Architecture, Positions
from beitcli.models.networks.beit import MaskedImageModel, forward_flops
from beitcli.models.networks.classifier import Classifier

TRANSFORMERS = {
    "absolute": "use_absolute_position_embeddings",
    "shared": "use_shared_relative_position_bias",
    "per-block": "use_relative_position_bias",
}
VOCABULARY = 64
LAYERS = 3


def tiny(positions: Positions = "shared", layer_scale: float = 0.1) -> Architecture:
    return Architecture(
        image_size=(64, 64), width=48, depth=LAYERS, heads=4, positions=positions, layer_scale=layer_scale
    )


def randomised(model: nn.Module) -> nn.Module:
    """Every parameter random, biases and tables included, so that none can be forgotten unseen."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.eval()


def mim(positions: Positions = "shared", layer_scale: float = 0.1) -> MaskedImageModel:
    model = randomised(MaskedImageModel(tiny(positions, layer_scale), VOCABULARY))
    assert isinstance(model, MaskedImageModel)
    return model


def pictures(count: int = 2) -> torch.Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2))


def some_mask(count: int = 2, hidden: int = 6) -> torch.Tensor:
    order = torch.rand(count, 16, generator=torch.Generator().manual_seed(3)).argsort(dim=1)
    return torch.zeros(count, 16, dtype=torch.bool).scatter_(1, order[:, :hidden], True)


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


# Size


@pytest.mark.parametrize(
    ("size", "positions", "layer_scale", "count"),
    [
        ("base", "absolute", 0.0, 92_089_856),
        ("large", "absolute", 0.0, 311_674_880),
        ("base", "shared", 0.1, 91_965_776),
        ("large", "shared", 1e-5, 311_534_016),
    ],
)
def test_masked_image_model_has_the_releases_parameter_count(size, positions, layer_scale, count):
    with torch.device("meta"):
        model = MaskedImageModel(Architecture(positions=positions, layer_scale=layer_scale, **SIZES[size]), 8192)
    assert parameters(model) == count


def test_the_medium_backbone_is_vit_small():
    block = 12 * 384**2 + 12 * 384  # matrices of attention and MLP; biases and norms
    with torch.device("meta"):
        model = Classifier(Architecture(**SIZES["medium"]), 10)
    assert parameters(model.blocks) == 12 * block


def test_classifier_has_the_parameter_count_of_timms_beit_base():
    with torch.device("meta"):
        model = Classifier(Architecture(positions="per-block", layer_scale=0.1, **SIZES["base"]), 1000)
    assert parameters(model) == 86_530_984


def test_forward_flops_of_base_equal_those_that_torch_counts():
    architecture = Architecture(**SIZES["base"])
    with torch.device("meta"):
        model = MaskedImageModel(architecture, 8192)
        images, mask = torch.empty(1, 3, 224, 224), torch.zeros(1, 196, dtype=torch.bool)
    with FlopCounterMode(display=False) as counter:
        model.token_head(model.hidden_features(images, mask)[0, :75])
    flops = forward_flops(architecture, 75, 8192)
    assert flops == pytest.approx(counter.get_total_flops(), rel=0.01)
    assert forward_flops(architecture, 0, 0) == pytest.approx(35.1e9, rel=0.005)
    assert flops - forward_flops(architecture, 0, 0) == 75 * 2 * 768 * 8192
    with FlopCounterMode(display=False) as narrowed:
        model(images, mask, torch.arange(75).unsqueeze(0))
    # of 122 rows the last block spares query, projection and MLP, 10 D^2, and both products with L rows
    spared = 122 * 2 * (10 * 768**2 + 2 * 197 * 768)
    assert flops - narrowed.get_total_flops() == pytest.approx(spared, rel=0.01)


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_forward_flops_of_tiny_equal_those_that_torch_counts(positions):
    with FlopCounterMode(display=False) as counter:
        mim(positions)(pictures(), some_mask())
    assert 2 * forward_flops(tiny(positions), 6, VOCABULARY) == pytest.approx(counter.get_total_flops(), rel=0.01)


def test_relative_position_index_is_that_of_the_release():
    with torch.device("cpu"):
        index = Beit(img_size=224, embed_dim=8, depth=1, num_heads=1, use_shared_rel_pos_bias=True).rel_pos_bias
    table, places = index.relative_position_bias_table, index.relative_position_index
    assert table.shape == (732, 1)
    assert [int(places[at]) for at in ((0, 1), (1, 0), (0, 0), (1, 1))] == [729, 730, 731, 364]
    # Query patch (2, 5) and key patch (4, 1): d = (-2, 4), (dh + 13) * 27 + dw + 13.
    assert int(places[1 + 2 * 14 + 5, 1 + 4 * 14 + 1]) == (-2 + 13) * 27 + 4 + 13


# Initialisation


@pytest.fixture(scope="module")
def initialised() -> MaskedImageModel:
    torch.manual_seed(0)
    architecture = Architecture(image_size=(64, 64), width=192, depth=8, heads=3, positions="absolute")
    return MaskedImageModel(architecture, 512)


def test_pretraining_init_is_a_normal_cut_at_one_standard_deviation(initialised):
    # Of a normal cut at +-1 sd the sd is sqrt(1 - 2 phi(1) / (2 Phi(1) - 1)) = 0.5397.
    for weight in (
        initialised.patch_embed.proj.weight,
        initialised.token_head.weight,
        initialised.blocks[3].attn.qkv.weight,
        initialised.blocks[3].mlp.fc1.weight,
    ):
        assert weight.abs().max() <= 0.02
        assert float(weight.detach().std()) == pytest.approx(0.02 * 0.5397, rel=0.02)
        assert abs(float(weight.detach().mean())) < 2e-4
    for token in (initialised.cls_token, initialised.mask_token, initialised.pos_embed):
        assert 0.015 < token.abs().max() <= 0.02
        assert float(token.detach().std()) == pytest.approx(0.0108, rel=0.2)


def test_pretraining_init_divides_residual_outputs_by_the_root_of_twice_the_layer(initialised):
    for layer, block in enumerate(initialised.blocks, start=1):
        for weight in (block.attn.proj.weight, block.mlp.fc2.weight):
            scale = math.sqrt(2 * layer)
            assert weight.abs().max() <= 0.02 / scale + 1e-9
            assert float(weight.detach().std()) * scale == pytest.approx(0.0108, rel=0.03)


def test_pretraining_init_leaves_biases_at_zero_and_norms_at_one(initialised):
    shared = MaskedImageModel(tiny("shared", layer_scale=1e-5), VOCABULARY)
    assert not shared.rel_pos_bias.relative_position_bias_table.any()
    assert torch.equal(shared.blocks[0].gamma_1, torch.full((48,), 1e-5))
    for name, parameter in initialised.named_parameters():
        if name.endswith("bias"):
            assert not parameter.any(), name
        elif "norm" in name:
            assert (parameter == 1).all(), name


def test_loss_at_initialisation_is_about_the_logarithm_of_the_vocabulary(initialised):
    images = torch.randn(4, 3, 64, 64, generator=torch.Generator().manual_seed(5))
    targets = torch.randint(512, (4 * 6,), generator=torch.Generator().manual_seed(6))
    with torch.no_grad():
        loss = nn.functional.cross_entropy(initialised.eval()(images, some_mask(4)), targets)
    assert float(loss) == pytest.approx(math.log(512), abs=0.2)


def test_no_layer_scale_means_no_parameter_of_it():
    assert MaskedImageModel(tiny("absolute", layer_scale=0.0), VOCABULARY).blocks[0].gamma_1 is None
    assert Classifier(tiny("per-block", layer_scale=0.0), 3).blocks[0].gamma_1 is None


def test_drop_path_rises_linearly_from_zero():
    model = MaskedImageModel(tiny(), VOCABULARY, drop_path=0.2)
    rates = [getattr(block.drop_path1, "drop_prob", 0.0) for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.1, 0.2])


# Masks


def repainted(images: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Other pixels in the patches where `mask` is True."""
    pixels = mask.reshape(-1, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2).unsqueeze(1)
    return torch.where(pixels, 5.0 - images, images)


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_pixels_under_the_mask_change_nothing(positions):
    model, images, mask = mim(positions), pictures(), some_mask()
    other = repainted(images, mask)
    assert not torch.equal(other, images)
    with torch.no_grad():
        assert torch.equal(model(other, mask), model(images, mask))
        assert torch.equal(model.hidden_features(other, mask), model.hidden_features(images, mask))


def test_a_single_visible_patch_changes_every_logit():
    model, images, mask = mim(), pictures(1), some_mask(1)
    visible = torch.zeros_like(mask)
    visible[0, int((~mask[0]).nonzero()[0])] = True
    with torch.no_grad():
        difference = (model(repainted(images, visible), mask) - model(images, mask)).abs()
    assert difference.amax(dim=1).min() > 1e-3


def test_the_mask_itself_changes_the_features_and_none_means_nothing_hidden():
    model, images, mask = mim(), pictures(), some_mask()
    with torch.no_grad():
        plain = model.hidden_features(images, None)
        assert not torch.allclose(model.hidden_features(images, mask), plain, atol=1e-3)
        assert torch.equal(model.hidden_features(images, torch.zeros_like(mask)), plain)
        assert model(images, None).shape == (32, VOCABULARY)


def test_logits_are_those_of_the_hidden_patches_in_order():
    model, images, mask = mim(), pictures(), some_mask()
    mask[1, 0] = True  # images may differ in how many are hidden
    with torch.no_grad():
        logits = model(images, mask)
        by_hand = model.token_head(model.hidden_features(images, mask)[mask])
    assert logits.shape == (int(mask.sum()), VOCABULARY)
    torch.testing.assert_close(logits, by_hand)


def test_predicted_positions_equal_the_boolean_mask():
    model, images, mask = mim(), pictures(), some_mask()
    positions = mask.nonzero()[:, 1].view(2, 6)
    with torch.no_grad():
        torch.testing.assert_close(model(images, mask, positions), model(images, mask), atol=1e-5, rtol=1e-5)
        every = model(images, mask, torch.arange(16).expand(2, 16))
        torch.testing.assert_close(every[mask.flatten()], model(images, mask), atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_mask_token_and_no_hidden_pixel():
    model, images, mask = mim(), pictures().requires_grad_(), some_mask()
    model(images, mask).square().sum().backward()
    assert model.mask_token.grad.abs().sum() > 0
    assert images.grad is not None
    hidden = mask.reshape(-1, 4, 4).repeat_interleave(16, 1).repeat_interleave(16, 2)
    assert not images.grad.permute(0, 2, 3, 1)[hidden].any()
    assert images.grad.permute(0, 2, 3, 1)[~hidden].any()


# Parity


def configured(positions: Positions, layer_scale: float, **more: object) -> BeitConfig:
    flags = {flag: flag == TRANSFORMERS[positions] for flag in TRANSFORMERS.values()}
    return BeitConfig(
        hidden_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=192,
        image_size=64,
        vocab_size=VOCABULARY,
        layer_norm_eps=1e-6,
        layer_scale_init_value=layer_scale,
        **flags,
        **more,
    )


def in_transformers_names(model: Beit, positions: Positions) -> dict[str, torch.Tensor]:
    """A model's tensors under transformers' names, by the table of keys."""
    ours, table = model.state_dict(), "relative_position_bias_table"
    moved = {
        "beit.embeddings.cls_token": "cls_token",
        "beit.embeddings.patch_embeddings.projection.weight": "patch_embed.proj.weight",
        "beit.embeddings.patch_embeddings.projection.bias": "patch_embed.proj.bias",
    }
    if positions == "absolute":
        moved["beit.embeddings.position_embeddings"] = "pos_embed"
    if positions == "shared":
        moved[f"beit.shared_position_bias.{table}"] = f"rel_pos_bias.{table}"
    if isinstance(model, MaskedImageModel):
        moved["beit.embeddings.mask_token"] = "mask_token"
        heads = {"layernorm": "norm", "lm_head": "token_head"}
    else:
        heads = {"beit.pooler.layernorm": "fc_norm", "classifier": "head"}
    moved |= {f"{there}.{kind}": f"{here}.{kind}" for there, here in heads.items() for kind in ("weight", "bias")}
    named = {there: ours[here] for there, here in moved.items()}
    modules = {"attention.o_proj": "attn.proj", "layernorm_before": "norm1", "layernorm_after": "norm2"}
    modules |= {"mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2"}
    for layer in range(LAYERS):
        block, there = f"blocks.{layer}.", f"beit.layers.{layer}."
        for name, rows in zip(("q", "k", "v"), ours[block + "attn.qkv.weight"].chunk(3), strict=True):
            named[f"{there}attention.{name}_proj.weight"] = rows
        for name in ("q", "v"):
            named[f"{there}attention.{name}_proj.bias"] = ours[f"{block}attn.{name}_bias"]
        for name, here in modules.items():
            named |= {f"{there}{name}.{kind}": ours[f"{block}{here}.{kind}"] for kind in ("weight", "bias")}
        for number in (1, 2):
            named[f"{there}lambda_{number}"] = ours.get(f"{block}gamma_{number}", torch.ones(48))
        if positions == "per-block":
            named[f"{there}relative_position_bias.{table}"] = ours[f"{block}attn.{table}"]
    return named


def fill(peer: nn.Module, named: dict[str, torch.Tensor]) -> None:
    """Loads exactly what the peer has; a LayerScale of ones is left out where it has none."""
    wanted = set(peer.state_dict())
    assert wanted <= set(named), wanted - set(named)
    assert all("lambda_" in name for name in set(named) - wanted), set(named) - wanted
    peer.load_state_dict({name: named[name] for name in wanted})
    peer.eval()


@pytest.mark.parametrize(("positions", "layer_scale"), [("absolute", 0.0), ("shared", 0.1)])
def test_masked_image_model_equals_that_of_transformers(positions, layer_scale):
    model, images, mask = mim(positions, layer_scale), pictures(), some_mask()
    peer = BeitForMaskedImageModeling(configured(positions, layer_scale, use_mask_token=True))
    fill(peer, in_transformers_names(model, positions))
    tokens = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        theirs = peer(images, bool_masked_pos=mask, labels=tokens[mask])
        logits = model(images, mask)
    of_hidden = theirs.logits[mask]
    assert (logits - of_hidden).abs().max() <= 1e-5
    assert torch.equal(logits.argmax(dim=1), of_hidden.argmax(dim=1))
    assert abs(float(nn.functional.cross_entropy(logits, tokens[mask])) - float(theirs.loss)) <= 1e-5


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_classifier_equals_that_of_transformers(layer_scale):
    model = randomised(Classifier(tiny("per-block", layer_scale), 5))
    peer = BeitForImageClassification(configured("per-block", layer_scale, num_labels=5))
    fill(peer, in_transformers_names(model, "per-block"))
    with torch.no_grad():
        ours, theirs = model(pictures()), peer(pictures()).logits
    assert (ours - theirs).abs().max() <= 1e-5
    assert torch.equal(ours.argmax(dim=1), theirs.argmax(dim=1))


@pytest.mark.parametrize("positions", list(TRANSFORMERS))
def test_backbone_equals_timms_own(positions):
    peer = Beit(
        img_size=64,
        embed_dim=48,
        depth=LAYERS,
        num_heads=4,
        init_values=0.1,
        use_abs_pos_emb=positions == "absolute",
        use_shared_rel_pos_bias=positions == "shared",
        use_rel_pos_bias=positions == "per-block",
        num_classes=5,
    ).eval()
    model = randomised(Classifier(tiny(positions), 5))
    assert set(peer.state_dict()) == set(model.state_dict())
    peer.load_state_dict(model.state_dict())
    with torch.no_grad():
        assert (model(pictures()) - peer(pictures())).abs().max() <= 1e-5
    hiding = mim(positions)
    backbone = Beit(
        img_size=64,
        embed_dim=48,
        depth=LAYERS,
        num_heads=4,
        init_values=0.1,
        use_abs_pos_emb=positions == "absolute",
        use_shared_rel_pos_bias=positions == "shared",
        use_rel_pos_bias=positions == "per-block",
        num_classes=0,
        global_pool="token",
    ).eval()
    own = {name: t for name, t in hiding.state_dict().items() if not name.startswith(("mask_token", "token_head"))}
    backbone.load_state_dict(own)
    with torch.no_grad():
        features = backbone.forward_features(pictures())[:, 1:]
        assert (hiding.hidden_features(pictures(), None) - features).abs().max() <= 1e-5


def test_a_bf16_residual_stream_stays_bf16_and_near_fp32():
    torch.manual_seed(0)
    architecture = Architecture(image_size=(32, 32), patch_size=8, width=48, depth=3, heads=4, layer_scale=0.1)
    model = MaskedImageModel(architecture, 16, 0.2)
    images, mask = torch.randn(4, 3, 32, 32), torch.zeros(4, 16, dtype=torch.bool)
    mask[:, 3:9] = True
    seen: list[torch.dtype] = []
    for block in model.blocks:
        block.register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    outputs = []
    for dtype in (None, torch.bfloat16):
        model.residual_dtype = dtype
        for training in (False, True):  # drop path, too
            model.train(training)
            with torch.autocast("cpu", torch.bfloat16):
                outputs.append(model(images, mask, uniforms=torch.full((4, 6), 0.5)).float())
    assert seen == [torch.float32] * 6 + [torch.bfloat16] * 6
    for exact, rounded in zip(outputs[:2], outputs[2:], strict=True):
        assert 0 < (exact - rounded).abs().max() <= 0.02 * exact.abs().max()
