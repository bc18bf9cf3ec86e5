"""From pretraining to finetuning and from one size to another: which tensor becomes what."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from beitcli.config.architecture import Architecture, Positions, finetuning_architecture
from beitcli.errors import StorageError
from beitcli.models.checkpoints.load_backbone import Transfer, expand_shared_bias, load_backbone, resize_to
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier

TABLE = "relative_position_bias_table"
DEPTH = 3


def tiny(positions: Positions = "shared", size: int = 64, layer_scale: float = 0.1, width: int = 48) -> Architecture:
    return Architecture(
        image_size=(size, size), width=width, depth=DEPTH, heads=4, positions=positions, layer_scale=layer_scale
    )


def pretrained(architecture: Architecture) -> dict[str, torch.Tensor]:
    model = MaskedImageModel(architecture, 32)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.2, generator=generator)
    return model.state_dict()


def into_classifier(source: Architecture, size: int | None = None, classes: int = 5):
    tensors = pretrained(source)
    target = finetuning_architecture(source, (size, size) if size else None)
    torch.manual_seed(2)
    model = Classifier(target, classes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    report = load_backbone(model, tensors, source, target)
    return model, tensors, before, report


def test_finetuning_turns_a_shared_bias_into_one_a_block():
    source = tiny("shared")
    target = finetuning_architecture(source, (128, 128))
    assert (target.positions, target.image_size, target.layer_scale) == ("per-block", (128, 128), 0.1)
    assert (target.width, target.depth, target.heads, target.patch_size) == (48, DEPTH, 4, 16)
    assert finetuning_architecture(tiny("absolute"), None).positions == "absolute"


def test_shared_table_is_cloned_into_every_block():
    model, tensors, _, _ = into_classifier(tiny("shared"))
    shared = tensors[f"rel_pos_bias.{TABLE}"]
    tables = [block.attn.relative_position_bias_table for block in model.blocks]
    assert len(tables) == DEPTH
    for table in tables:
        assert torch.equal(table, shared)
    with torch.no_grad():
        tables[0].zero_()
    assert torch.equal(tables[1], shared)  # copies, not one tensor three times
    assert len({tensor.data_ptr() for tensor in expand_shared_bias(tensors, DEPTH).values()}) == len(tensors) + 2


def test_backbone_is_loaded_and_norm_and_head_are_fresh():
    model, tensors, before, report = into_classifier(tiny("shared"))
    after = model.state_dict()
    for name in report.loaded:
        source = f"rel_pos_bias.{TABLE}" if name.endswith(TABLE) else name
        assert torch.equal(after[name], tensors[source]), name
    assert set(report.newly_initialized) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    for name in report.newly_initialized:
        assert torch.equal(after[name], before[name]), name
    assert (after["fc_norm.weight"] == 1).all()
    assert not torch.equal(tensors["norm.weight"], after["fc_norm.weight"])
    assert set(report.dropped) == {
        "mask_token", "norm.weight", "norm.bias", "token_head.weight", "token_head.bias",
    }  # fmt: skip
    assert report.resized == ()
    assert set(report.loaded) | set(report.newly_initialized) == set(after)


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_transferred_backbone_computes_the_pretraining_features(positions):
    source = tiny(positions)
    model, tensors, _, _ = into_classifier(source)
    pretraining = MaskedImageModel(source, 32).eval()
    pretraining.load_state_dict(tensors)
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        before_norm = model.eval().forward_features(images)[:, 1:]
        by_hand = torch.nn.functional.layer_norm(before_norm, (48,), tensors["norm.weight"], tensors["norm.bias"], 1e-6)
        torch.testing.assert_close(by_hand, pretraining.hidden_features(images, None), atol=1e-5, rtol=1e-5)


def test_bias_tables_are_resized_for_another_size_and_their_last_rows_copied():
    model, tensors, _, report = into_classifier(tiny("shared"), size=80)
    shared = tensors[f"rel_pos_bias.{TABLE}"]
    assert shared.shape == (7 * 7 + 3, 4)
    assert set(report.resized) == {f"blocks.{block}.attn.{TABLE}" for block in range(DEPTH)}
    for block in model.blocks:
        table = block.attn.relative_position_bias_table
        assert table.shape == (9 * 9 + 3, 4)
        assert torch.equal(table[-3:], shared[-3:])
        assert torch.equal(table[:-3].reshape(9, 9, 4)[4, 4], shared[:-3].reshape(7, 7, 4)[3, 3])  # no offset
    with torch.no_grad():
        assert model.eval()(torch.zeros(1, 3, 80, 80)).shape == (1, 5)


def test_a_constant_bias_stays_constant_when_resized():
    tensors = {f"rel_pos_bias.{TABLE}": torch.full((52, 4), 0.7)}
    fitted, _ = resize_to(tensors, tiny("shared"), tiny("shared", size=80))
    torch.testing.assert_close(fitted[f"rel_pos_bias.{TABLE}"], torch.full((9 * 9 + 3, 4), 0.7))


@pytest.mark.parametrize("size", [32, 96, 128])
def test_absolute_positions_are_resized_bicubic_without_antialias(size):
    model, tensors, _, report = into_classifier(tiny("absolute", layer_scale=0.0), size=size)
    positions = tensors["pos_embed"]
    side = size // 16
    grid = positions[:, 1:].reshape(1, 4, 4, 48).permute(0, 3, 1, 2)
    by_hand = interpolate(grid, size=(side, side), mode="bicubic", align_corners=False, antialias=False)
    by_hand = by_hand.permute(0, 2, 3, 1).reshape(1, side * side, 48)
    assert report.resized == ("pos_embed",)
    assert torch.equal(model.pos_embed[:, :1], positions[:, :1])
    torch.testing.assert_close(model.pos_embed[:, 1:], by_hand, atol=1e-6, rtol=0)


def test_the_same_size_resizes_nothing():
    tensors = pretrained(tiny("absolute"))
    fitted, resized = resize_to(tensors, tiny("absolute"), tiny("absolute"))
    assert resized == []
    assert all(fitted[name] is tensors[name] for name in tensors)


def test_head_and_fc_norm_come_along_when_the_same_task_goes_on():
    source = tiny("per-block")
    first = Classifier(source, 5)
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.normal_(std=0.2)
    again = Classifier(source, 5)
    report = load_backbone(again, first.state_dict(), source, source, reinit=())
    assert report.newly_initialized == report.dropped == ()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in first.state_dict().items())
    other = Classifier(source, 9)
    report = load_backbone(other, first.state_dict(), source, source)
    assert set(report.newly_initialized) == {"fc_norm.weight", "fc_norm.bias", "head.weight", "head.bias"}
    assert other.head.weight.shape != first.head.weight.shape


def test_another_width_is_refused():
    tensors = pretrained(tiny("absolute"))
    wider = tiny("absolute", width=64)
    with pytest.raises(StorageError, match="does not fit this model"):
        load_backbone(Classifier(wider, 5), tensors, tiny("absolute"), wider)


def test_a_missing_tensor_is_refused_by_name():
    tensors = pretrained(tiny("absolute"))
    del tensors["blocks.1.mlp.fc1.weight"]
    with pytest.raises(StorageError, match=r"1 tensors missing.*blocks\.1\.mlp\.fc1\.weight"):
        load_backbone(Classifier(tiny("absolute"), 5), tensors, tiny("absolute"), tiny("absolute"))


def test_a_head_of_other_classes_is_refused_where_the_task_goes_on():
    source = tiny("per-block")
    tensors = Classifier(source, 5).state_dict()
    with pytest.raises(StorageError, match="2 of another shape"):
        load_backbone(Classifier(source, 7), tensors, source, source, reinit=())


def test_summary_counts_what_a_head_explains_and_names_the_rest():
    loaded = Transfer(("a", "b"), ("a",), ("mask_token", "norm.bias", "gamma"), ("head.weight",))
    assert loaded.summary("masked-image-model", "classifier", unread=("optimizer",)) == (
        "2 tensors loaded, 1 of them resized; the head of its pretraining is dropped (2 tensors); "
        "the classifier's head is new (1 tensor); not used: gamma, optimizer"
    )
    assert Transfer(("a",), (), (), ()).summary("classifier", "classifier") == "1 tensor loaded"
    assert Transfer(("a",), (), (), ()).summary("segmenter", "classifier", of_head=("decode_head.x",)) == (
        "1 tensor loaded; what followed its blocks is dropped (1 tensor)"
    )
