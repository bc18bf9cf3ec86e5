"""`load_model` and `load_tokenizer`: the class follows from the checkpoint, the outputs equal the engine's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import beitcli
from beitcli.config.resolve import resolve
from beitcli.engine.finetune import finetune
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.models.networks.beit import MaskedImageModel
from beitcli.models.networks.classifier import Classifier
from beitcli.models.networks.detector import Detector
from beitcli.models.networks.segmenter import Segmenter
from tests.helpers.coco_folder import save_rectangles
from tests.helpers.scenes import IGNORE


@pytest.mark.parametrize(
    ("fixture", "kind"), [("pretrained_run", MaskedImageModel), ("finetuned_run", Classifier)], ids=lambda v: str(v)
)
def test_load_model_gives_the_class_of_the_run(request: pytest.FixtureRequest, fixture: str, kind: type) -> None:
    model = beitcli.load_model(request.getfixturevalue(fixture), progress=False)
    assert type(model.network) is kind
    assert not model.training
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_load_model_has_the_weights_of_the_checkpoint(pretrained_run: Path) -> None:
    model = beitcli.load_model(pretrained_run, progress=False)
    expected, _ = open_masked_image_model(str(pretrained_run))
    for name, tensor in expected.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    images = torch.zeros(2, 3, *model.architecture.image_size)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    mask[:, :6] = True
    assert torch.equal(model(images, mask), expected(images, mask))


def test_load_model_opens_a_segmenter(scenes: Path, tmp_path: Path) -> None:
    settings = {"classes": str(scenes / "names.txt"), "ignore_index": IGNORE, "recipe": "tiny-segment"}
    _finetune(scenes, tmp_path / "run", **settings)
    model = beitcli.load_model(tmp_path / "run", progress=False)
    assert type(model.network) is Segmenter
    assert not model.training


def test_load_model_opens_a_detector(tmp_path: Path) -> None:
    save_rectangles(tmp_path / "data", "train", 4, seed=0)
    save_rectangles(tmp_path / "data", "val", 2, seed=1)
    _finetune(tmp_path / "data", tmp_path / "run", recipe="tiny-detect", head_width=16, regions=16)
    model = beitcli.load_model(tmp_path / "run", progress=False)
    assert type(model.network) is Detector
    assert not model.training


def _finetune(data: Path, run: Path, **settings: Any) -> None:
    flags = {"data": [str(data)], "out": str(run), "init": "random", "size": 32, "steps": 1, "batch_size": 2}
    finetune(resolve(beitcli.FinetuneConfig, flags | {"device": "cpu", "workers": 0} | settings).config)


def test_load_model_of_a_shape_alone_gives_pooled_features(pretrained_run: Path) -> None:
    model = beitcli.load_model(f"{pretrained_run}@random", progress=False)
    images = torch.zeros(2, 3, *model.architecture.image_size)
    assert model(images).shape == (2, model.architecture.width)


def test_load_tokenizer_turns_images_into_tokens(pretrained_run: Path, tokenizer_run: Path) -> None:
    images = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    tokenizer = beitcli.load_tokenizer(tokenizer_run, progress=False)
    assert isinstance(tokenizer, beitcli.Tokenizer)
    tokens = tokenizer.encode(images)
    assert (tokens.shape, tokens.dtype, tokenizer.vocab_size) == ((2, 16), torch.int64, 16)
    assert torch.equal(beitcli.load_tokenizer(pretrained_run, progress=False).encode(images), tokens)


def test_a_tokenizer_says_the_size_it_was_trained_on_and_takes_others(pretrained_run: Path) -> None:
    tokenizer = beitcli.load_tokenizer(pretrained_run, progress=False)
    assert (tokenizer.size, tokenizer.downsample) == (16, 4)
    assert tokenizer.encode(torch.zeros(1, 3, 16, 16)).shape == (1, 4 * 4)
    assert tokenizer.encode(torch.zeros(1, 3, 32, 24)).shape == (1, 8 * 6)
    model = beitcli.load_model(pretrained_run, progress=False)
    height, width = (patches * tokenizer.downsample for patches in model.architecture.grid)
    tokens = tokenizer.encode(torch.zeros(2, 3, height, width))
    assert tokens.numel() == len(model(torch.zeros(2, 3, *model.architecture.image_size)))


def test_a_tokenizer_is_no_model(tokenizer_run: Path) -> None:
    with pytest.raises(beitcli.StorageError, match="is a tokenizer") as raised:
        beitcli.load_model(tokenizer_run)
    assert raised.value.__notes__ == ["Open it with beitcli.load_tokenizer."]


def test_a_missing_model_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(beitcli.StorageError):
        beitcli.load_model(tmp_path / "nothing")
    with pytest.raises(beitcli.StorageError):
        beitcli.load_tokenizer(tmp_path / "nothing")
