"""Segmenters of the release and of transformers: their own logits, from their own files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from beitcli.models.checkpoints.build import load_segmenter
from beitcli.models.checkpoints.head_keys import head_name
from beitcli.models.checkpoints.open import open_model
from beitcli.models.networks.segmenter import Segmenter
from tests.helpers.foreign_models import SMALL


def hf_segmenter(labels: int) -> transformers.BeitForSemanticSegmentation:
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        **SMALL | {"num_hidden_layers": 4}, use_relative_position_bias=True, num_labels=labels, out_indices=[1, 2, 3, 4]
    )
    model = transformers.BeitForSemanticSegmentation(config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
            if name.endswith(("running_var", "normalization.weight", "before.weight", "after.weight")):
                tensor.abs_().add_(0.5)
    return model


def logits_of(theirs: transformers.BeitForSemanticSegmentation, images: torch.Tensor) -> torch.Tensor:
    """Of the blocks that the release taps; transformers itself reads the outputs of the blocks before them."""
    hidden = theirs.beit(images, output_hidden_states=True).hidden_states
    maps = [hidden[block + 1][:, 1:].transpose(1, 2).unflatten(2, (4, 4)) for block in (0, 1, 2, 3)]
    return theirs.decode_head(theirs.fpn(maps))


def as_released(ours: Segmenter) -> dict[str, torch.Tensor]:
    """Our tensors by mmseg's names."""

    def theirs(name: str) -> str:
        if name.startswith(("decode_head.fpn1.", "decode_head.fpn2.")):
            return name.replace("decode_head.", "backbone.")
        if name.startswith("decode_head.auxiliary."):
            return name.replace("decode_head.auxiliary.", "auxiliary_head.")
        return name if name.startswith("decode_head.") else f"backbone.{name}"

    return {theirs(name): tensor.clone() for name, tensor in ours.state_dict().items()}


def test_transformers_segmenter_gives_its_own_logits(tmp_path):
    theirs = hf_segmenter(7)
    theirs.save_pretrained(tmp_path / "hf")
    ours, checkpoint = load_segmenter(open_model(str(tmp_path / "hf")))
    assert (checkpoint.kind, checkpoint.outputs, checkpoint.head) == ("segmenter", 7, "upernet")
    assert checkpoint.key_mapping.dropped == ()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(ours(images)[0], logits_of(theirs, images), rtol=1e-4, atol=1e-5)
    assert checkpoint.parameters == sum(parameter.numel() for parameter in theirs.parameters())


def test_released_segmenter_gives_its_own_logits(tmp_path):
    hf_segmenter(7).save_pretrained(tmp_path / "hf")
    ours, _ = load_segmenter(open_model(str(tmp_path / "hf")))
    torch.save({"meta": {"epoch": 1}, "state_dict": as_released(ours)}, tmp_path / "upernet.pth")
    again, checkpoint = load_segmenter(open_model(str(tmp_path / "upernet.pth")))
    assert (checkpoint.kind, checkpoint.outputs) == ("segmenter", 7)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(again(images)[0], ours(images)[0])


def test_names_of_a_backbone_are_none_of_a_head():
    assert head_name("backbone.blocks.0.norm1.weight") is None
    assert head_name("head.weight") is None


@pytest.mark.parametrize(("labels", "numbers"), [(150, (1, 150)), (7, (0, 6))])
def test_predict_takes_them_and_numbers_ade20k_s_classes_from_one(beit, tmp_path, labels, numbers):
    hf_segmenter(labels).save_pretrained(tmp_path / "hf")
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)).save(picture)
    ended = beit("predict", tmp_path / "hf", picture, "-o", tmp_path / "out", "--workers", 0)
    assert ended.code == 0, ended.err
    with Image.open(Path(ended.lines[0]["output"])) as mask:
        values = np.asarray(mask)
    assert values.shape == (70, 90)
    assert numbers[0] <= values.min() <= values.max() <= numbers[1]
    assert ended.lines[0]["classes"].keys() == {str(value - numbers[0]) for value in np.unique(values)}
