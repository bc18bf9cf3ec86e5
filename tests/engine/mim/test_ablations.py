"""Table 4's ablations: pixels for tokens, random masks, every patch predicted, no mask; alone and together."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from beitcli.config.common import Training
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.toml_text import dump_toml
from beitcli.data.loading.batches import ordered_batches
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import denormalize, fit_center, normalize, to_array
from beitcli.engine.events import Warned
from beitcli.engine.mim.targets import PixelTarget, TokenTarget
from beitcli.engine.mim.task import PretrainTask, absolute_reference, transform_and_masking
from beitcli.engine.pretrain import pretrain
from beitcli.engine.trainer.data import hold_out
from beitcli.engine.trainer.setup import make_plan
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.masking import make_masking
from beitcli.masking.base import MaskGenerator
from beitcli.models.checkpoints.build import open_masked_image_model
from beitcli.runtime.compute.device import Compute
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.tokenizers.open import open_tokenizer

CPU = Compute(torch.device("cpu"), "fp32")
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])


def settings(data: Path, out: Path | str = "", **more: Any) -> PretrainConfig:
    flags = {
        "recipe": "tiny", "data": [str(data)], "image_size": 32, "num_masked": 6, "steps": 2, "batch_size": 8,
        "warmup_steps": 0, "device": "cpu", "workers": 0, "log_every": 1, "out": str(out),
    }  # fmt: skip
    return resolve(PretrainConfig, flags | more).config


def make_task(config: PretrainConfig, **more: Any) -> PretrainTask:
    held = hold_out(open_data(config.data, role="train"), config.holdout, config.seed)
    masking = make_masking(config.masking, config.architecture.grid, 6, config.min_block) if config.mask else None
    tokenizer = None if config.target == "pixels" else open_tokenizer(config.tokenizer)
    return PretrainTask(config, make_plan(config, held.training), tokenizer, masking, held.measured, CPU)


def one_batch(task: PretrainTask, count: int = 8) -> dict[str, torch.Tensor]:
    transform, masking = transform_and_masking(task.config, task.tokenizer, task.masking)
    source = open_data(task.config.data, role="train")
    return next(ordered_batches(source, transform, batch_size=count, workers=0, masking=masking)).to(CPU.device)


def patch_of(image: torch.Tensor, patch: int) -> torch.Tensor:
    """The 3 x 8 x 8 normalised pixels of a patch of a 32 x 32 image, cut by hand."""
    row, column = divmod(patch, 4)
    pixels = image[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] / 255
    return (pixels - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)


# The settings


@pytest.mark.parametrize(
    "flags",
    [{"target": "pixels"}, {"tokenizer": "pixels"}, {"target": "pixels", "tokenizer": "own"},
     {"target": "pixels", "tokenizer": "no/such/run"}, {"target": "pixels", "recipe": "base"}],
    ids=str,
)  # fmt: skip
def test_pixels_are_asked_for_by_either_flag(flags):
    config = settings("photos", **flags)
    assert config.target == "pixels"
    assert config.tokenizer != "pixels"
    assert 'target = "pixels"' in dump_toml(config).splitlines()


def test_resume_refuses_another_target(tmp_path, labelled_folder):
    pretrain(settings(labelled_folder, tmp_path / "run", target="pixels", steps=1))
    flags = {"out": str(tmp_path / "run"), "resume": True}
    for same in ({}, {"target": "pixels"}, {"tokenizer": "pixels"}):
        assert resolve(PretrainConfig, flags | same).config.target == "pixels"
    with pytest.raises(UsageError, match='--target: the run has "pixels", given is "tokens"'):
        resolve(PretrainConfig, flags | {"target": "tokens"})


def test_epochs_of_the_paper_replace_a_recipes_steps(labelled_folder):
    """24 images, of which one is held out, in batches of 8."""
    source = hold_out(open_data([str(labelled_folder)]), 512, 0).training
    for epochs, steps in ((300, 862), (800, 2300)):
        flags = {"recipe": "tiny", "data": [str(labelled_folder)], "epochs": epochs, "batch_size": 8}
        config: Training = resolve(PretrainConfig, flags).config
        assert (config.steps, make_plan(config, source).steps) == (None, steps)


# The loss of pixels


def test_pixel_loss_is_the_squared_error_of_the_hidden_patches_by_hand(labelled_folder):
    task = make_task(settings(labelled_folder, target="pixels"))
    batch = one_batch(task)
    assert set(batch) == {"images", "mask", "labels"}
    task.model.eval()
    loss, metrics = task.loss(batch)
    assert metrics == {}
    images = (batch["images"] / 255 - MEAN.view(3, 1, 1)) / STD.view(3, 1, 1)
    with torch.no_grad():
        said = task.model.token_head(task.model.hidden_features(images, batch["mask"]))
    errors = []
    for image in range(8):
        for patch in batch["mask"][image].nonzero().flatten().tolist():
            expected = patch_of(batch["images"][image], patch).flatten()
            errors.append(float((said[image, patch] - expected).square().mean()))
    assert len(errors) == 8 * 6
    assert said.shape == (8, 16, 3 * 8 * 8)
    assert float(loss.detach()) == pytest.approx(sum(errors) / 48, rel=1e-4)


def test_pixel_tally_by_hand():
    """Two patches of one pixel: red 1 and 3 (variance 1), green 0 and 4 (4), blue 2 and 2 (0)."""
    target = PixelTarget(1)
    targets = torch.tensor([[1.0, 0.0, 2.0], [3.0, 4.0, 2.0]])
    outputs = torch.tensor([[1.0, 1.0, 2.0], [3.0, 4.0, 0.0]])  # errors 0 1 0 and 0 0 4
    assert float(target.loss(outputs, targets)) == pytest.approx(5 / 6)
    whole, parts = target.accumulator(), target.accumulator()
    whole.update(outputs, targets, None)
    for row in range(2):
        parts.update(outputs[row : row + 1], targets[row : row + 1], None)
    for accumulator in (whole, parts):
        assert accumulator.compute() == pytest.approx({"loss": 5 / 6, "baseline_loss": 5 / 3})


def test_error_of_the_accuracy_is_that_of_images(tokenizer_run):
    """Three images of two hidden patches with 2, 1 and 0 right: 50% right, sd 1 patch of 2, so 0.5 / sqrt 3."""
    target = TokenTarget(open_tokenizer(str(tokenizer_run)), torch.device("cpu"))
    tokens = torch.tensor([3, 5, 3, 5, 3, 5])
    guessed = F.one_hot(torch.tensor([3, 5, 3, 0, 0, 0]), 16).float()
    whole, parts, masked = target.accumulator(), target.accumulator(), target.accumulator()
    whole.update(guessed, tokens, None, 3)
    parts.update(guessed[:4], tokens[:4], None, 2)
    parts.update_empty()
    parts.update(guessed[4:], tokens[4:], None, 1)
    hidden = torch.tensor([True, True, False]).repeat(3)  # a third patch of each image, which is seen
    of_three = torch.tensor([0, 1, 0, 2, 3, 0, 4, 5, 0])
    masked.update(guessed[of_three], tokens[of_three], hidden, 3)
    for accumulator in (whole, parts, masked):
        measured = accumulator.compute()
        assert measured["masked_accuracy"] == 0.5
        assert measured["masked_accuracy_std_error"] == pytest.approx(0.5 / 3**0.5)
        assert measured["measured_patches"] == 6
    one = target.accumulator()
    one.update(guessed[:2], tokens[:2], None, 1)
    assert "masked_accuracy_std_error" not in one.compute()


def test_error_of_the_lead_of_the_loss_is_that_of_images(tokenizer_run):
    """Codes 0 and 1 of 16 were trained on 79 and 19 times: guesses of 80/114 and 20/114; the model gives each a half.

    Leads of a patch: ln(114/80) - ln 2 = ln 0.7125 of code 0, ln(114/20) - ln 2 = ln 2.85 of code 1. Three images of
    two patches with 0, 1 and 2 of code 1 have leads of 2 ln 0.7125 + (0, 1, 2) ln 4, whose deviation is ln 4. Where few
    tokens were trained on, the guess is the measured ones' own: the error is that of the loss, 0.
    """
    target = TokenTarget(open_tokenizer(str(tokenizer_run)), torch.device("cpu"))
    target.load_state({"token_counts": torch.tensor([79, 19] + [0] * 14)})
    tokens = torch.tensor([0, 0, 0, 1, 1, 1])
    outputs = torch.full((6, 16), -100.0)
    outputs[:, :2] = 0.0
    whole, parts = target.accumulator(), target.accumulator()
    whole.update(outputs, tokens, None, 3)
    parts.update(outputs[:4], tokens[:4], None, 2)
    parts.update_empty()
    parts.update(outputs[4:], tokens[4:], None, 1)
    for accumulator in (whole, parts):
        measured = accumulator.compute()
        assert measured["loss"] == pytest.approx(math.log(2))
        assert measured["loss_lead_std_error"] == pytest.approx(math.log(4) * 3**0.5 / 6, rel=1e-5)
    target.load_state({"token_counts": torch.tensor([39, 9] + [0] * 14)})
    untrained = target.accumulator()
    untrained.update(outputs, tokens, None, 3)
    assert untrained.compute()["loss_lead_std_error"] == pytest.approx(0, abs=1e-3)


def test_guesses_beside_few_measured_patches_are_by_the_tokens_trained_on(tokenizer_run):
    """6 patches of 16 codes: the best guess of one of 6 would be right for a sixth, and their entropy ln 6 at most."""
    target = TokenTarget(open_tokenizer(str(tokenizer_run)), torch.device("cpu"))
    tokens = torch.arange(6)
    outputs = F.one_hot(tokens, 16).float()
    alone = target.accumulator()
    alone.update(outputs, tokens, None, 3)
    assert alone.compute()["baseline_accuracy"] == pytest.approx(1 / 6)
    target.load_state({"token_counts": torch.tensor([9] + [1] * 15)})  # 24 tokens, too few themselves
    early = target.accumulator()
    early.update(outputs, tokens, None, 3)
    assert early.compute()["unigram_entropy"] == pytest.approx(math.log(6))
    target.load_state({"token_counts": torch.tensor([49] + [1] * 15)})  # four of each code
    few, many = target.accumulator(), target.accumulator()
    few.update(outputs, tokens, None, 3)
    measured = few.compute()
    assert measured["baseline_accuracy"] == pytest.approx(1 / 6)
    assert measured["unigram_entropy"] == pytest.approx(-(math.log(50 / 80) + 5 * math.log(2 / 80)) / 6)
    for _ in range(11):  # 66 patches, four of each code
        many.update(outputs, tokens, None, 3)
    assert many.compute()["unigram_entropy"] == pytest.approx(math.log(6))


def test_tallies_read_nothing_of_the_device_before_the_end(tokenizer_run):
    """On the meta device there is nothing to read."""
    meta = torch.device("meta")
    tokens = TokenTarget(open_tokenizer(str(tokenizer_run)), meta)
    seen = torch.ones(6, dtype=torch.bool, device=meta)
    tallies = [tokens.accumulator(), tokens.accumulator(), PixelTarget(8).accumulator()]
    for tally, mask in zip(tallies, (None, seen), strict=False):
        guessed, targets = torch.empty(6, 16, device=meta), torch.empty(6, dtype=torch.int64, device=meta)
        tally.update(guessed, targets, mask, 3)
    colours = torch.empty(6, 3 * 8 * 8, device=meta)
    tallies[-1].update(colours, colours, None, 3)
    for tally in tallies:
        with pytest.raises((RuntimeError, NotImplementedError), match="meta"):  # the end reads, as would any before it
            tally.compute()


def test_guessing_the_mean_colour_has_the_baseline_loss(labelled_folder):
    task = make_task(settings(labelled_folder, target="pixels", holdout=0))
    colours = torch.cat([
        torch.stack([patch_of(image, patch) for patch in mask.nonzero().flatten().tolist()])
        for image, mask in zip(*(one_batch(task, 24)[name] for name in ("images", "mask")), strict=True)
    ])  # fmt: skip
    mean = colours.mean(dim=(0, 2, 3))
    with torch.no_grad():
        task.model.token_head.weight.zero_()
        task.model.token_head.bias.copy_(mean.repeat_interleave(64))
    task.model.eval()
    measured = task.evaluate()
    assert measured["loss"] == pytest.approx(measured["baseline_loss"], rel=1e-4)
    assert measured["baseline_loss"] == pytest.approx(float((colours - mean.view(3, 1, 1)).square().mean()), rel=1e-4)


# Which patches


def test_accuracy_is_of_the_hidden_patches_where_all_are_predicted(labelled_folder, tokenizer_run):
    task = make_task(settings(labelled_folder, predict="all", tokenizer=str(tokenizer_run)))
    assert isinstance(task.target, TokenTarget)
    batch = one_batch(task)
    task.model.eval()
    _, metrics = task.loss(batch)
    with torch.no_grad():
        (outputs,), targets = task.forward_with_targets(batch)
    right = (outputs.argmax(dim=1) == targets).reshape(8, 16)[batch["mask"]]
    assert float(metrics["masked_accuracy"]) == pytest.approx(float(right.float().mean()))
    tokens = targets.reshape(8, 16)[batch["mask"]]
    assert torch.equal(task.target.state()["token_counts"], torch.bincount(tokens, minlength=16))
    accumulator = task.target.accumulator()
    accumulator.update(outputs, targets, task.objective.metric_mask(batch["mask"]))
    measured = accumulator.compute()
    assert measured["masked_accuracy"] == pytest.approx(float(right.float().mean()))
    assert measured["baseline_accuracy"] == pytest.approx(float(tokens.bincount().max() / 48))
    assert measured["loss"] == pytest.approx(float(task.target.loss(outputs, targets)), rel=1e-5)


@pytest.mark.parametrize("target", ["tokens", "pixels"])
def test_no_mask_draws_none_and_measures_every_patch(monkeypatch, labelled_folder, tokenizer_run, target):
    drawn = []
    original = MaskGenerator.__call__
    monkeypatch.setattr(MaskGenerator, "__call__", lambda self, rng: drawn.append(1) or original(self, rng))
    more = {"tokenizer": str(tokenizer_run)} if target == "tokens" else {"target": "pixels"}
    # 25 hidden patches, the recipe's own number, would not fit the 16 there are
    task = make_task(settings(labelled_folder, mask=False, predict="all", num_masked=25, **more))
    batch = one_batch(task)
    (outputs,), targets = task.forward_with_targets(batch)
    assert "mask" not in batch
    assert len(outputs) == len(targets) == 8 * 16
    task.model.eval()
    assert np.isfinite(task.evaluate()["loss"])
    assert drawn == []


# Whole runs


TABLE_4 = {
    "BEiT": {},
    "random masking": {"masking": "random"},
    "pixels": {"target": "pixels"},
    "pixels, random masking": {"target": "pixels", "masking": "random"},
    "all patches": {"predict": "all"},
    "all patches, no mask": {"predict": "all", "mask": False},
}
FURTHER = {
    "pixels of all patches": {"target": "pixels", "predict": "all", "masking": "random"},
    "pixels, no mask": {"target": "pixels", "predict": "all", "mask": False},
}


@pytest.mark.parametrize("name", [*TABLE_4, *FURTHER])
def test_each_row_of_table_4_is_trained(tmp_path, labelled_folder, tokenizer_run, name):
    switches = (TABLE_4 | FURTHER)[name]
    events: list[object] = []
    config = settings(labelled_folder, tmp_path / "run", tokenizer=str(tokenizer_run), **switches)
    report = pretrain(config, events.append)
    pixels = config.target == "pixels"
    assert (report.step, report.target) == (2, config.target)
    assert np.isfinite(report.loss)
    for value in (report.masked_accuracy, report.baseline_accuracy, report.unigram_entropy):
        assert (value is None) == pixels
    assert (report.baseline_loss is None) != pixels
    stored = newest_checkpoint(tmp_path / "run").config
    assert (stored["target"], stored["tokenizer"] is None) == (config.target, pixels)
    assert stored["token_size"] == (None if pixels else [16, 16])
    assert (stored["masking"] or {}).get("name") == (config.masking if config.mask else None)
    card = (tmp_path / "run" / "README.md").read_text()
    assert ("pixels, normalised as the images are" in card) == pixels
    assert ("accuracy on all patches" in card) == (not config.mask and not pixels)
    model, _ = open_masked_image_model(str(tmp_path / "run"))
    assert model.token_head.out_features == (192 if pixels else 16)
    assert any("The metrics rest on 1 held-out image" in e.message for e in events if isinstance(e, Warned))


def test_pixels_resumed_equal_the_whole_run(tmp_path, labelled_folder):
    more = {"target": "pixels", "steps": 4, "save_every": 2, "color_jitter": 0.4, "drop_path": 0.2}
    pretrain(settings(labelled_folder, tmp_path / "whole", **more))
    run = shutil.copytree(tmp_path / "whole", tmp_path / "run")
    shutil.rmtree(run / "checkpoints" / "step-0000004")
    flags = {"out": str(run), "resume": True, "device": "cpu", "workers": 0}
    report = pretrain(resolve(PretrainConfig, flags).config)
    assert (report.step, report.target) == (4, "pixels")
    for name in ("model.safetensors", "trainer.safetensors"):
        parts = [each / "checkpoints" / "step-0000004" / name for each in (run, tmp_path / "whole")]
        assert parts[0].read_bytes() == parts[1].read_bytes(), name


def test_pixels_need_no_tokenizer_and_learn(beit, labelled_folder, tmp_path):
    argv = ["pretrain", labelled_folder, "--recipe", "tiny", "--tokenizer", "pixels", "--image-size", 32,
            "--num-masked", 6, "--steps", 30, "--batch-size", 8, "--workers", 0, "--device", "cpu", "--holdout", 0,
            "--out", tmp_path / "run", "--json"]  # fmt: skip
    ended = beit(*argv)
    assert ended.code == 0, ended.err
    (document,) = ended.lines
    assert document["masked_accuracy"] is None
    assert document["loss"] < document["baseline_loss"]
    assert "learned nothing" not in ended.err
    assert not (tmp_path / "run" / "tokenizer").exists()
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[-1]["held_out_baseline_loss"] == document["baseline_loss"]


def test_mask_preview_draws_the_pixels_that_the_model_says(beit, picture, labelled_folder, tmp_path):
    pretrain(settings(labelled_folder, tmp_path / "run", target="pixels", image_size="32,48"))
    image = picture("a.png", size=(90, 60))
    argv = ["mask-preview", image, "--model", tmp_path / "run", "--device", "cpu", "-o", tmp_path / "out.png"]
    (document,) = beit(*argv).lines
    mask = torch.tensor(document["mask"], dtype=torch.bool)
    model, _ = open_masked_image_model(str(tmp_path / "run"))
    transform = torch.from_numpy(to_array(fit_center(Image.open(image).convert("RGB"), (32, 48))))
    images = normalize(transform[None], tuple(MEAN.tolist()), tuple(STD.tolist()))
    with torch.no_grad():
        said = model(images, mask.flatten()[None]).reshape(-1, 3, 8, 8)
    expected = transform.float() / 255
    for patch, (row, column) in zip(said, mask.nonzero().tolist(), strict=True):
        pixels = (patch * STD.view(3, 1, 1) + MEAN.view(3, 1, 1)).clamp(0, 1)
        expected[:, 8 * row : 8 * row + 8, 8 * column : 8 * column + 8] = pixels
    by_hand = Image.fromarray((expected * 255).round().byte().permute(1, 2, 0).numpy())
    with Image.open(tmp_path / "out.png") as drawn:
        panel = np.asarray(drawn.convert("RGB"))[16 : 16 + 4 * 74, 48 + 888 : 48 + 1332]
    expected_panel = np.asarray(by_hand.resize((444, 296), Image.Resampling.BICUBIC))
    edges = np.zeros(panel.shape[:2], dtype=bool)  # where outlines may lie
    for place in range(0, 444 + 1, 74):
        edges[max(0, place - 8) : place + 8] = edges[:, max(0, place - 8) : place + 8] = True
    assert np.abs(panel.astype(int) - expected_panel)[~edges].max() <= 1


def test_denormalize_undoes_normalize():
    images = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(2, 3, 16, 16)
    mean, std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    back = denormalize(normalize(images, mean, std), mean, std)
    assert torch.allclose(back, images / 255, atol=1e-6)
    assert denormalize(torch.full((1, 3, 1, 1), 9.0), mean, std).max() == 1


# What is said


def test_a_run_that_knows_no_more_than_the_baseline_is_told(labelled_folder, tokenizer_run, tmp_path):
    for number, more in enumerate(({"tokenizer": str(tokenizer_run)}, {"target": "pixels"})):
        events: list[object] = []
        report = pretrain(settings(labelled_folder, tmp_path / str(number), lr=1e-9, min_lr=0.0, **more), events.append)
        warnings = [event.message for event in events if isinstance(event, Warned)]
        if report.baseline_loss is not None:
            assert report.loss >= report.baseline_loss
            assert any("of that of the mean colour" in message for message in warnings)
        else:
            assert report.masked_accuracy <= report.baseline_accuracy or report.loss >= report.unigram_entropy
            told = ("learnt nothing yet", "learnt little yet", "The tokens say little")
            assert any(verdict in message for message in warnings for verdict in told)


def test_a_wrong_data_path_is_told_before_a_wrong_tokenizer(tmp_path):
    build: Callable[..., PretrainConfig] = partial(settings, out=tmp_path / "run", tokenizer=str(tmp_path / "absent"))
    with pytest.raises(DataError, match="photoss"):
        pretrain(build(tmp_path / "photoss"))
    with pytest.raises(StorageError, match="absent"):
        pretrain(build("sample"))
    assert list(tmp_path.iterdir()) == []


def test_references_last(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    assert [absolute_reference(name) for name in ("run", "dall-e", "hf://a/b")] == [
        str(tmp_path / "run"),
        "dall-e",
        "hf://a/b",
    ]
