"""`beit export`: every kind to every layout, opened with the program it is for; refused where it would differ."""

from __future__ import annotations

import json
import resource
import signal
from pathlib import Path

import pytest
import timm
import torch
import transformers

from beitcli import __version__
from beitcli.cli.app import main
from beitcli.config.inspect_export import LAYOUTS
from beitcli.engine.export_check import compare
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_classifier, open_masked_image_model
from beitcli.models.checkpoints.export_formats import to_official
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import (
    ReleasedMasked,
    hf_backbone,
    hf_classifier,
    hf_masked,
    noise,
    save_released,
    timm_small,
)
from tests.helpers.forked import Child


def exported(beit, model: Path, to: str, output: Path) -> dict[str, object]:
    ended = beit("export", model, "--to", to, "-o", output, "--json")
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@torch.no_grad()
def test_finetuned_checkpoint_opens_in_timm_as_it_lies(finetuned_run):
    checkpoint = finetuned_run / "checkpoints" / "step-0000004"
    theirs = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).eval()
    model, _ = open_classifier(str(finetuned_run))
    images, _ = noise((32, 32))
    assert torch.equal(theirs(images), model(images))
    assert theirs.pretrained_cfg["label_names"] == ["blue", "green", "red"]
    assert tuple(theirs.pretrained_cfg["mean"]) == (0.485, 0.456, 0.406)


@torch.no_grad()
def test_pretrained_run_opens_in_transformers_with_equal_logits(beit, tmp_path, pretrained_run):
    report = exported(beit, pretrained_run, "hf", tmp_path / "hf")
    assert report["verified_with"] == f"transformers {transformers.__version__}"
    assert report["max_difference"] <= 1e-5
    theirs = transformers.BeitForMaskedImageModeling.from_pretrained(tmp_path / "hf").eval()
    model, _ = open_masked_image_model(str(pretrained_run))
    images, mask = noise((32, 32))
    expected = model(images, mask)
    logits = theirs(images, bool_masked_pos=mask).logits[mask]
    assert (logits - expected).abs().max() <= 1e-5
    assert torch.equal(logits.argmax(1), expected.argmax(1))


MAKERS = {
    "masked shared": lambda folder: hf_masked(folder, use_shared_relative_position_bias=True),
    "masked absolute": lambda folder: hf_masked(
        folder, use_absolute_position_embeddings=True, layer_scale_init_value=0.0
    ),
    "classifier": hf_classifier,
    "class token": lambda folder: hf_classifier(folder, use_mean_pooling=False),
    "backbone": hf_backbone,
    "timm": timm_small,
}


@pytest.mark.parametrize("to", ["timm", "hf", "official"])
@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_goes_to_every_layout_and_back_unchanged(beit, tmp_path, kind, to):
    MAKERS[kind](tmp_path / "theirs")
    report = exported(beit, tmp_path / "theirs", to, tmp_path / "out")
    assert report["max_difference"] <= 1e-5
    before, after = open_model(str(tmp_path / "theirs")), open_model(str(tmp_path / "out"))
    assert after.format == to
    assert after.architecture == before.architecture
    assert after.classes == before.classes
    assert after.normalization == before.normalization
    tensors, again = before.tensors(), after.tensors()
    assert all(torch.equal(tensors[name], again[name]) for name in again)
    headless = kind.startswith("masked") and to == "timm"
    left_out = {"mask_token"} | ({"token_head.weight", "token_head.bias"} if headless else set())
    assert set(tensors) - set(again) <= left_out
    assert after.kind == ("backbone" if headless else before.kind)


def test_the_verification_is_said_once_and_not_at_all_where_quiet(beit, tmp_path, finetuned_run):
    ended = beit("export", finetuned_run, "--to", "timm", "-o", tmp_path / "a")
    assert (ended.code, ended.out) == (0, f"{tmp_path / 'a'}\n")
    assert ended.err.lower().count("verified") == ended.err.count("largest difference") == 1
    quiet = beit("export", finetuned_run, "--to", "timm", "-o", tmp_path / "b", "-q")
    assert (quiet.code, quiet.out, quiet.err) == (0, f"{tmp_path / 'b'}\n", "")


def test_a_masked_model_for_timm_says_what_it_leaves_out(beit, tmp_path, pretrained_run):
    report = exported(beit, pretrained_run, "timm", tmp_path / "out")
    assert report["compared"] == "features"
    assert sorted(report["dropped"]) == ["mask_token", "token_head.bias", "token_head.weight"]


def test_released_layout_has_the_index_buffers_and_names_of_the_release(tmp_path):
    released = ReleasedMasked(use_abs_pos_emb=False, use_shared_rel_pos_bias=True, init_values=0.1)
    path = save_released(released, tmp_path / "p.pth")
    stored = torch.load(path, weights_only=False)["model"]
    checkpoint = open_model(str(path))
    again = to_official(checkpoint.tensors(), checkpoint.architecture)
    assert set(again) == set(stored)
    assert all(torch.equal(again[name], stored[name]) for name in stored)


def test_a_path_that_is_taken_is_refused_and_untouched(beit, tmp_path, pretrained_run):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "note.txt").write_text("keep")
    ended = beit("export", pretrained_run, "--to", "hf", "-o", tmp_path / "mine")
    assert ended.code == 2
    assert "is there already" in ended.err
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["note.txt"]


def test_a_full_disk_leaves_nothing(beit, tmp_path, pretrained_run):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limit[1]))
    try:
        ended = beit("export", pretrained_run, "--to", "hf", "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert ended.code == 4, ended.err
    assert list(tmp_path.iterdir()) == []


def test_a_tokenizer_is_no_model_to_export(beit, tmp_path, tokenizer_run):
    ended = beit("export", tokenizer_run, "--to", "hf", "-o", tmp_path / "out")
    assert ended.code == 4
    assert "tokenizer" in ended.err


def test_an_export_that_differs_is_refused(tmp_path):
    theirs = tmp_path / "theirs"
    hf_classifier(theirs)
    checkpoint = open_model(str(theirs))
    other = tmp_path / "other"
    hf_classifier(other, layer_norm_eps=1e-2)
    with pytest.raises(StorageError, match="differs from"):
        compare("hf", checkpoint, checkpoint.tensors(), other)


@pytest.mark.parametrize("positions", ["absolute", "shared"])
def test_a_model_of_oblong_images_goes_to_timm_but_not_to_transformers(beit, tmp_path, positions):
    settings = {"use_abs_pos_emb": True} if positions == "absolute" else {
        "use_abs_pos_emb": False, "use_shared_rel_pos_bias": True}  # fmt: skip
    released = ReleasedMasked(img_size=(48, 80), **settings)
    path = save_released(released, tmp_path / "a.pth", num_heads=4, input_size=[48, 80])
    ended = beit("export", path, "--to", "hf", "-o", tmp_path / "hf")
    assert (ended.code, (tmp_path / "hf").exists()) == (2, False)
    assert "--to timm" in ended.err
    assert exported(beit, path, "timm", tmp_path / "timm")["max_difference"] <= 1e-5


def test_an_export_into_the_folder_one_stands_in_or_through_a_link(beit, tmp_path, monkeypatch, finetuned_run):
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    exported(beit, finetuned_run, "timm", tmp_path / "link")
    assert open_model(str(tmp_path / "empty")).format == "timm"
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert beit("export", finetuned_run, "--to", "hf", "-o", ".").code == 0


def test_two_exports_at_once_leave_one_whole(tmp_path, finetuned_run):
    words = ["export", finetuned_run, "--to", "official", "-o", tmp_path / "out"]
    both = [Child(lambda: main([str(word) for word in words])) for _ in range(2)]
    ended = [child.ended() for child in both]
    assert sorted(each.code for each in ended) == [0, 2], ended
    assert open_model(str(tmp_path / "out")).kind == "classifier"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_crop_of_evaluation_goes_along(beit, tmp_path):
    timm_small(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings["pretrained_cfg"]["crop_pct"] = 0.8
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    for to in ("timm", "hf", "official"):
        exported(beit, tmp_path / "theirs", to, tmp_path / to)
        assert open_model(str(tmp_path / to)).crop.crop_pct == 0.8


@pytest.mark.parametrize("to", ["timm", "official", "hf"])
def test_an_epsilon_that_the_layout_cannot_hold_is_said(beit, tmp_path, to):
    hf_classifier(tmp_path / "theirs", layer_norm_eps=1e-12)
    ended = beit("export", tmp_path / "theirs", "--to", to, "-o", tmp_path / "out")
    assert ended.code == 0, ended.err
    assert ("epsilon of 1e-12" in ended.err) == (to != "hf")


@pytest.mark.parametrize("to", ["timm", "hf", "official"])
@pytest.mark.parametrize("pct", [None, 0.95, 1.0])
def test_the_stated_preprocessing_gives_the_same_pixels_of_oblong_photos(beit, tmp_path, to, pct):
    """The crop of `pct` 0.95 of 64 pixels has an odd margin, which transformers rounds another way."""
    timm_small(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings["pretrained_cfg"] |= {"crop_pct": pct, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    report = exported(beit, tmp_path / "theirs", to, tmp_path / "out")
    assert (to == "hf" and pct == 0.95) or report["pixel_difference"] <= 3
    assert pct == 0.95 or report["photo_difference"] <= 0.1
    if to == "hf":
        processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
        assert processor["size"] == {"shortest_edge": int(64 / (pct or 0.875))}


def test_an_export_whose_preprocessing_differs_is_refused(beit, tmp_path, finetuned_run):
    exported(beit, finetuned_run, "hf", tmp_path / "out")
    processor = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    squash = {"image_processor_type": "BeitImageProcessor", "size": {"height": 36, "width": 36}}
    (tmp_path / "out" / "preprocessor_config.json").write_text(json.dumps(processor | squash))
    checkpoint = open_model(str(finetuned_run))
    with pytest.raises(StorageError, match="gives other pixels"):
        compare("hf", checkpoint, checkpoint.tensors(), tmp_path / "out")


def test_a_padded_image_has_no_processor_of_transformers(beit, tmp_path):
    timm_small(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings["pretrained_cfg"]["crop_mode"] = "border"
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    ended = beit("export", tmp_path / "theirs", "--to", "hf", "-o", tmp_path / "hf")
    assert (ended.code, (tmp_path / "hf").exists()) == (2, False)
    assert exported(beit, tmp_path / "theirs", "timm", tmp_path / "timm")["pixel_difference"] <= 3


def test_export_names_its_format_and_what_read_it(beit, tmp_path, finetuned_run):
    ended = beit("export", finetuned_run, "-o", tmp_path / "default")
    assert f"format {LAYOUTS['hf']} (--to hf; others: timm, official, onnx)" in " ".join(ended.err.split())
    ended = beit("export", finetuned_run, "--to", "official", "-o", tmp_path / "out")
    assert ended.code == 0
    text = " ".join(ended.err.split())
    assert "format the release's .pth (--to official)" in text
    assert "others" not in text
    assert f"verified opened again by beit {__version__}: largest difference" in text
