"""`beit export --to onnx`, run by onnxruntime: any batch size, the card's own lines, one file, what is refused."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from beitcli.engine import onnx_export
from beitcli.engine.export_check import compare
from beitcli.engine.onnx_export import write_onnx
from beitcli.errors import StorageError
from beitcli.models.checkpoints.build import open_classifier
from beitcli.models.checkpoints.open import open_model
from tests.helpers.foreign_models import hf_backbone, hf_classifier, hf_masked, noise, timm_small


@pytest.fixture
def onnxruntime() -> Any:
    for name in ("onnx", "onnxscript"):
        pytest.importorskip(name, reason="the extra `onnx` is not installed")
    return pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")


def exported(beit, model: Path, output: Path, *further: str) -> dict[str, Any]:
    ended = beit("export", model, "--to", "onnx", "-o", output, "--json", *further)
    assert ended.code == 0, ended.err
    return json.loads(ended.out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "output", "settings"),
    [
        (hf_classifier, "logits", {}),
        (hf_classifier, "logits", {"use_relative_position_bias": False, "use_absolute_position_embeddings": True}),
        (hf_masked, "last_hidden_state", {"use_shared_relative_position_bias": True}),
        (hf_backbone, "last_hidden_state", {"use_mean_pooling": False}),
    ],
)
@torch.no_grad()
def test_the_graph_gives_what_transformers_gives_for_any_batch(beit, onnxruntime, tmp_path, make, output, settings):
    theirs = make(tmp_path / "theirs", **settings)
    report = exported(beit, tmp_path / "theirs", tmp_path / "out")
    assert report["verified_with"] == f"onnxruntime {onnxruntime.__version__}"
    assert report["compared"] == ("logits" if output == "logits" else "features")
    path = tmp_path / "out" / "model.onnx"
    session = onnxruntime.InferenceSession(path)
    assert [(each.name, each.shape) for each in session.get_inputs()] == [("pixel_values", ["batch", 3, 64, 64])]
    assert [each.name for each in session.get_outputs()] == [output]
    backbone = theirs.beit if make is hf_masked else theirs
    for batch in (1, 3):
        images = torch.randn(batch, 3, 64, 64, generator=torch.Generator().manual_seed(batch))
        expected = getattr(backbone(images), output)
        expected = theirs.layernorm(expected) if make is hf_masked else expected
        assert np.abs(session.run(None, {"pixel_values": images.numpy()})[0] - expected.numpy()).max() <= 1e-4
    assert b"blocks.py" not in path.read_bytes()  # nothing of this machine's folders
    assert report["dropped"] == (["mask_token", "token_head.bias", "token_head.weight"] if make is hf_masked else [])


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["center", "squash", "border"])
@torch.no_grad()
def test_the_lines_of_the_card_give_the_models_logits_of_a_photo(beit, onnxruntime, tmp_path, mode):
    timm_small(tmp_path / "theirs")
    settings = json.loads((tmp_path / "theirs" / "config.json").read_text())
    settings["pretrained_cfg"] |= {"crop_pct": 0.9, "crop_mode": mode, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.4]}
    (tmp_path / "theirs" / "config.json").write_text(json.dumps(settings))
    report = exported(beit, tmp_path / "theirs", tmp_path / "out")
    assert report["pixel_difference"] <= 3
    assert (tmp_path / "out" / "preprocessor_config.json").exists() == (mode != "border")
    blobs = np.random.default_rng(0).integers(0, 256, (9, 15, 3), dtype=np.uint8)
    photo = Image.fromarray(blobs).resize((150, 91), Image.Resampling.BICUBIC)
    photo.save(tmp_path / "photo.png")
    card = (tmp_path / "out" / "README.md").read_text()
    lines = card.partition("```python\n")[2].partition("```")[0]
    lines = lines.replace("FOLDER", str(tmp_path / "out")).replace("PHOTO", str(tmp_path / "photo.png"))
    values: dict[str, Any] = {}
    exec(lines, values)
    model = timm.create_model(f"local-dir:{tmp_path / 'theirs'}", pretrained=True).eval()
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
    expected = transform(photo)[None]
    levels = np.abs(values["pixel_values"] - expected.numpy()) * np.array([0.2, 0.3, 0.4]).reshape(3, 1, 1) * 255
    assert levels.max() <= 3
    assert np.abs(values["logits"] - model(expected).numpy()).max() <= 0.01


@pytest.mark.slow
def test_one_file_holds_labels_and_preprocessing_and_is_not_replaced_unasked(
    beit, onnxruntime, tmp_path, finetuned_run
):
    path = tmp_path / "model of mine.onnx"
    exported(beit, finetuned_run, path)
    stored = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map
    assert json.loads(stored["label_names"]) == ["blue", "green", "red"]
    assert json.loads(stored["preprocessing"])["mean"] == [0.485, 0.456, 0.406]
    assert [each.name for each in tmp_path.iterdir()] == [path.name]
    path.write_bytes(b"of another")
    ended = beit("export", finetuned_run, "--to", "onnx", "-o", path)
    assert (ended.code, path.read_bytes()) == (2, b"of another")
    assert "exists already" in ended.err
    exported(beit, finetuned_run, path, "--overwrite")
    with torch.no_grad():
        images, _ = noise((32, 32))
        expected = open_classifier(str(finetuned_run))[0](images).numpy()
    logits = onnxruntime.InferenceSession(path).run(None, {"pixel_values": images.numpy()})[0]
    assert np.abs(logits - expected).max() <= 1e-5


@pytest.mark.slow
def test_weights_that_one_file_cannot_hold_lie_beside_the_graph(
    beit, onnxruntime, tmp_path, finetuned_run, monkeypatch
):
    monkeypatch.setattr(onnx_export, "_LARGEST", 1_000)
    ended = beit("export", finetuned_run, "--to", "onnx", "-o", tmp_path / "m.onnx")
    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert "Give a folder" in ended.err
    exported(beit, finetuned_run, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx.data").stat().st_size > 10 * (tmp_path / "out" / "model.onnx").stat().st_size
    assert onnxruntime.InferenceSession(tmp_path / "out" / "model.onnx").get_outputs()[0].shape == ["batch", 3]
    monkeypatch.undo()
    exported(beit, finetuned_run, tmp_path / "out", "--overwrite")
    assert not (tmp_path / "out" / "model.onnx.data").exists()


@pytest.mark.slow
def test_a_graph_that_differs_is_refused(onnxruntime, tmp_path):
    hf_classifier(tmp_path / "theirs")
    hf_classifier(tmp_path / "other", layer_norm_eps=1e-2)
    checkpoint, other = open_model(str(tmp_path / "theirs")), open_model(str(tmp_path / "other"))
    model, _ = open_classifier(str(tmp_path / "other"))
    write_onnx(model, other, tmp_path / "model.onnx", {"preprocessing": "{}"})
    with pytest.raises(StorageError, match=r"differs from .* \(read by onnxruntime"):
        compare("onnx", checkpoint, checkpoint.tensors(), tmp_path)


@pytest.mark.slow
def test_a_full_disk_leaves_no_graph(beit, onnxruntime, tmp_path, finetuned_run):
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))
    try:
        ended = beit("export", finetuned_run, "--to", "onnx", "-o", tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        signal.signal(signal.SIGXFSZ, ignored)
    assert ended.code == 4, ended.err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("missing", "said", "way_out"),
    [
        (["onnxscript"], "onnxscript, which is", "Install it: pip install 'onnxscript>=0.5'"),
        (["onnx", "onnxscript"], "onnx and onnxscript, which are",
         "Install them: pip install 'onnx>=1.18' 'onnxscript>=0.5'"),
        (["onnx", "onnxruntime", "onnxscript"], "onnx, onnxruntime and onnxscript, which are",
         "Install them: pip install 'onnx>=1.18' 'onnxruntime>=1.22' 'onnxscript>=0.5'"),
    ],
)  # fmt: skip
def test_without_the_extra_it_is_said_how_to_install_it(
    beit, tmp_path, finetuned_run, monkeypatch, missing, said, way_out
):
    installed = {"onnx", "onnxruntime", "onnxscript"} - set(missing)
    if any(importlib.util.find_spec(name) is None for name in installed):
        pytest.skip("the extra `onnx` is not installed")
    for name in missing:
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    ended = beit("export", finetuned_run, "--to", "onnx", "-o", tmp_path / "out")
    assert (ended.code, list(tmp_path.iterdir())) == (2, [])
    assert ended.err.splitlines() == [f"error: --to onnx needs {said} not installed.", f"  {way_out}"]
