"""What the training commands say of data and plan before their first step."""

from __future__ import annotations

import json
import math
import re
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import Event, Note, Warned, ignore
from beitcli.engine.segmentation.dataset import MaskStats, mask_stats_findings
from beitcli.engine.trainer.preflight.amount import few_findings, one_image_findings
from beitcli.engine.trainer.preflight.check import Preflight
from beitcli.engine.trainer.preflight.findings import Finding, tell
from beitcli.engine.trainer.preflight.given_tokenizer import given_tokenizer_findings
from beitcli.engine.trainer.preflight.looked_at import Looked, image_findings, look
from beitcli.engine.trainer.preflight.overlap import find_overlap
from beitcli.engine.trainer.preflight.schedule import (
    class_findings,
    mask_findings,
    measuring_findings,
    own_tokenizer_findings,
    schedule_findings,
)
from beitcli.errors import DataError
from beitcli.runtime.distributed.world import join, shutdown
from tests.conftest import Ended, save_picture
from tests.documents.reading import ROOT, flags_of
from tests.helpers.processes import in_group

TINY = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--workers", 0)
Beit = Callable[..., Ended]


def kinds(findings: object) -> list[str]:
    return [each.kind for each in findings]


def test_a_dry_run_of_ten_photographs_says_that_they_are_few_and_seen_thousands_of_times(tmp_path: Path, beit: Beit):
    for number in range(10):
        save_picture(tmp_path / "photos" / f"{number}.jpg", (90, 90, 90), number, (200, 150))
    args = ("--target", "pixels", "--steps", 1250, "--dry-run", "--json", "--device", "cpu")
    ended = beit("pretrain", tmp_path / "photos", *TINY, *args)
    assert ended.code == 0, ended.err
    told = {each["kind"]: each for each in json.loads(ended.out)["preflight"]}
    assert list(told) == ["few-images", "many-epochs", "measured-on-training"]
    assert "10 training images are few" in told["few-images"]["what"]
    assert "or skip pretraining, if some have labels: `beit finetune LABELLED" in told["few-images"]["way_out"]
    assert "1,250 steps of 8 images are 1,000 passes over 10 images" in told["many-epochs"]["what"]
    assert told["many-epochs"]["way_out"] == "--steps 375 makes 300 passes."
    assert f"warning: {told['few-images']['what']}" in ended.err


def test_the_tokenizer_that_is_trained_on_the_way_is_judged_too(tmp_path: Path, beit: Beit):
    for number in range(12):
        save_picture(tmp_path / "photos" / f"{number}.jpg", (90, 90, 90), number, (64, 48))
    args = ("--tokenizer-steps", 800, "--dry-run", "--json", "--device", "cpu")
    ended = beit("pretrain", tmp_path / "photos", *TINY, *args)
    assert ended.code == 0, ended.err
    told = {each["kind"]: each for each in json.loads(ended.out)["preflight"]}
    few, many = told["tokenizer-few-images"], told["tokenizer-many-epochs"]
    assert few["what"].startswith("The tokenizer, which trains first, has 12 images too")
    assert "--tokenizer RUN" in few["way_out"]
    assert "its 800 steps of 16 images are 1,067 passes over 12 images" in many["what"]
    assert many["way_out"] == "Give more images, or one that is trained: --tokenizer RUN."
    assert f"warning: {many['what']} {many['way_out']}" in ended.err.splitlines()
    assert kinds(own_tokenizer_findings(500, 16, 1000)) == []


def test_a_resumed_run_is_not_told_again(tmp_path: Path, labelled_folder: Path, beit: Beit):
    args = ("--target", "pixels", "--steps", 2, "--save-every", 1, "--device", "cpu", "--out", tmp_path / "run")
    first = beit("pretrain", labelled_folder, *TINY, *args)
    assert "few to learn from" in first.err, first.err
    again = beit("pretrain", "--out", tmp_path / "run", "--resume")
    assert again.code == 0, again.err
    assert "few to learn from" not in again.err


def test_one_process_of_several_reads_the_checkpoint_of_a_run_that_goes_on(pretrained_run: Path):
    """It is hashed as a whole: 12 GB for each process of a large model."""
    source = open_data(["sample"])
    config = resolve(PretrainConfig, {"data": ["sample"], "recipe": "tiny"}).config
    config = replace(config, out=str(pretrained_run), resume=True)
    preflight = Preflight(config=config, training=source, measured=source, is_apart=False, size=32, from_scratch=True)

    def work(rank: int) -> None:
        world = join(torch.device("cpu"), 1, 30)
        opened: list[str] = []
        sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event == "open" else None)
        assert preflight.run(world, ignore) == []
        print(sum(name.endswith(".safetensors") for name in opened) > 0)
        world.gather(None)  # none leaves before the others
        shutdown()

    assert [(each.code, each.out) for each in in_group(2, work)] == [(0, "True\n"), (0, "False\n")]


def test_the_default_recipe_says_what_it_takes_before_it_downloads(tmp_path: Path, beit: Beit, monkeypatch):
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in ("a", "b"):
        save_picture(tmp_path / "photos" / f"{name}.jpg", (90, 90, 90), 1)
    ended = beit("pretrain", tmp_path / "photos", "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 4, ended.err
    lines = ended.err.splitlines()
    (told,) = [number for number, line in enumerate(lines) if line.startswith("Recipe base: ")]
    assert "800 epochs in batches of 2,048, DALL-E's tokenizer (215 MB to download)" in lines[told]
    assert "--recipe small (64 x 64 pixels, 20 epochs" in lines[told]
    assert told < next(number for number, line in enumerate(lines) if line.startswith("error: "))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("is_folder", [False, True], ids=["file", "folder"])
@pytest.mark.parametrize("command", ["pretrain", "train-tokenizer"])
def test_one_image_is_refused_before_anything_is_trained_or_downloaded(
    tmp_path: Path, beit: Beit, monkeypatch, command: str, is_folder: bool
):
    """The default recipe of `pretrain` would download DALL-E's tokenizer, which ends with 4 here."""
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    image = save_picture(tmp_path / "photos" / "a.jpg", (90, 90, 90), 1)
    ended = beit(command, image.parent if is_folder else image, "--device", "cpu", "--out", tmp_path / "run")
    assert ended.code == 3, ended.err
    error, hint = ended.err.splitlines()[-2:]
    assert error.startswith("error: Nothing can be learned from 1 image")
    assert f"Give {'1,000' if command == 'pretrain' else '100'} or more, 2 at least" in hint
    assert f"`beit {command} sample --recipe tiny`" in hint
    assert "few to learn from" not in ended.err
    assert not (tmp_path / "run").exists()


def test_a_stack_that_counts_as_one_image_is_told_how_its_pages_count(tmp_path: Path, beit: Beit):
    page = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48)).astype(np.uint8))
    page.save(tmp_path / "a.tif", save_all=True, append_images=[page] * 4)
    ended = beit("train-tokenizer", tmp_path / "a.tif", "--recipe", "tiny", "--device", "cpu")
    assert ended.code == 3, ended.err
    assert "--pages all makes each page an image" in ended.err


def test_a_classifier_needs_images_of_two_classes_to_learn_from(tmp_path: Path, labelled_folder: Path, beit: Beit):
    table = tmp_path / "labels.csv"
    table.write_text(f"path,bright,dark\n{labelled_folder / 'red' / '00.jpg'},1,0\n")
    args = ("--init", "random", "--recipe", "tiny", "--size", 32, "--device", "cpu", "--out", tmp_path / "run")
    for given, same in (
        ((labelled_folder, "--limit", 1), "The only image to learn from has the class 'blue'"),
        ((table, "--problem", "multi-label"), "The only image to learn from has the same labels"),
    ):
        ended = beit("finetune", *given, *args)
        assert ended.code == 3, ended.err
        assert same in ended.err.splitlines()[-2]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("command", "images", "batch", "steps", "given", "expected"),
    [
        ("pretrain", 1_281_167, 2048, 500_456, False, []),
        ("pretrain", 10, 2048, 4, False, ["few-images", "batch-over-images"]),
        ("pretrain", 5000, 64, 80_000, True, ["many-epochs"]),
        ("pretrain", 5000, 2048, 20, False, ["few-steps"]),
        ("pretrain", 5000, 2048, 20, True, []),
        ("train-tokenizer", 500, 64, 100, False, []),
        ("train-tokenizer", 90, 64, 100, False, ["few-images"]),
        ("train-tokenizer", 12, 16, 3200, True, ["few-images", "many-epochs", "batch-over-images"]),
        ("finetune", 90, 64, 100, False, []),
        ("finetune", 1, 1, 100, False, ["few-images"]),
    ],
)
def test_the_length_of_a_training_is_judged(command, images, batch, steps, given, expected):
    assert kinds(schedule_findings(command, images, batch, steps, steps_given=given)) == expected


def test_the_way_out_of_a_large_batch_fits():
    *_, batch = schedule_findings("pretrain", 10, 2048, 4, steps_given=False)
    assert "205 times, and the whole run is 4 steps" in batch.what
    assert batch.way_out == "--batch-size 8 fits; scale --lr with it."


def test_few_images_to_measure_on_move_in_steps():
    (finding,) = measuring_findings("finetune", 5, True)
    assert "5 images" in finding.what
    assert "steps of 20%" in finding.what
    assert finding.way_out == "--val DATA names others."
    (finding,) = measuring_findings("finetune", 5, True, "held-out/")
    assert finding.what.startswith("5 images to measure on in --val held-out/ are few")
    assert finding.way_out == "Give more images there."
    (finding,) = measuring_findings("pretrain", 10, True)
    assert finding.way_out == "A twentieth of DATA is held out: 50 need 1,000 images in DATA."
    assert kinds(measuring_findings("pretrain", 512, True)) == []
    assert kinds(measuring_findings("pretrain", 12, False)) == ["measured-on-training"]


def test_a_tokenizer_of_many_passes_gets_fewer_steps_or_where_these_would_be_few_more_images():
    (long,) = own_tokenizer_findings(190, 16, 3200)
    assert "269 passes over 190 images" in long.what
    assert long.way_out == "--tokenizer-steps 1188 makes 100 passes."
    *_, few = own_tokenizer_findings(12, 16, 800)
    assert few.way_out == "Give more images, or one that is trained: --tokenizer RUN."
    assert kinds(own_tokenizer_findings(2000, 16, 3200)) == []


def test_a_block_that_fits_no_grid_is_told():
    assert kinds(mask_findings((14, 14), 75, 16)) == []
    assert kinds(mask_findings((4, 4), 6, 16)) == ["small-grid"]
    (finding,) = mask_findings((4, 4), 15, 12)  # blocks are narrower than the grid: 3 x 3 is the largest
    assert "--min-block 4 fits" in finding.way_out


def test_classes_that_are_rare_or_dominate_are_told(tmp_path: Path):
    for number in range(40):
        save_picture(tmp_path / ("cat" if number else "dog") / f"{number}.png", (50, 80, 90), number, (8, 8))
    dominates, few = class_findings(open_data([str(tmp_path)]))
    assert "98% of the images are 'cat'" in dominates.what
    assert "the least 'dog' with 1" in few.what


def test_a_folder_without_images_beside_the_classes_is_told(tmp_path: Path, labelled_folder: Path, beit: Beit):
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    (data / "yellow").mkdir()
    args = ("--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 2, "--batch-size", 8, "--device", "cpu")
    ended = beit("finetune", data, *args, "--workers", 0, "--dry-run", "--json")
    assert ended.code == 0, ended.err
    told = {each["kind"]: each["what"] for each in json.loads(ended.out)["preflight"]}
    assert "1 folder without images will be no class" in told["empty-folders"]
    assert str(data / "yellow") in told["empty-folders"]
    (same,) = (each for each in beit("doctor", data, "--json").lines[0]["findings"] if each["kind"] == "empty-folders")
    assert same["what"] == told["empty-folders"]


def test_evaluation_images_that_are_training_images_are_told_by_content(tmp_path: Path, labelled_folder: Path):
    val = tmp_path / "val"
    for name in ("blue", "red"):
        (val / name).mkdir(parents=True)
    shutil.copy(labelled_folder / "blue" / "00.jpg", val / "blue" / "other-name.jpg")
    save_picture(val / "red" / "new.png", (200, 10, 10), 77)
    found = find_overlap(open_data([str(labelled_folder)]), open_data([str(val)]), math.inf)
    assert found.pairs == ((str(val / "blue" / "other-name.jpg"), str(labelled_folder / "blue" / "00.jpg")),)
    assert (found.looked_at, found.compared) == (2, 24)


def test_dark_stacks_are_told_from_some_images(tmp_path: Path):
    draw = np.random.default_rng(0)
    for number in range(4):
        page = Image.fromarray(draw.integers(0, 4096, (40, 48)).astype(np.uint16))
        page.save(tmp_path / f"{number}.tif", save_all=True, append_images=[page] * number)
    looked = look(open_data([str(tmp_path)]), math.inf)
    assert looked.images == 4
    dark, stacks = image_findings(looked, 32, from_scratch=True)
    assert (dark.kind, dark.severity) == ("dark", "warning")
    assert "become 16 of 255 at most" in dark.what
    assert "3 of 4 images looked at are TIFFs of up to 4 pages" in stacks.what


def test_photographs_of_eight_bits_give_no_finding(labelled_folder: Path):
    looked = look(open_data([str(labelled_folder)]), math.inf)
    assert looked.images == 24
    assert kinds(image_findings(looked, 64, from_scratch=True)) == []
    assert kinds(image_findings(looked, 224, from_scratch=True)) == ["small-images"]
    assert kinds(image_findings(looked, 224, from_scratch=False)) == []


def test_images_that_all_become_one_colour_are_refused(tmp_path: Path):
    for number in range(20):
        Image.fromarray(np.full((8, 8), number, np.uint16)).save(tmp_path / f"{number}.tif")
    (finding,) = image_findings(look(open_data([str(tmp_path)]), math.inf), 8, from_scratch=True)
    events: list[Event] = []
    with pytest.raises(DataError, match="All 20 images looked at become one colour"):
        tell([finding, Finding("x", "note", "A note.")], events.append)
    assert events == [Note("note: A note.")]


def test_unreadable_images_among_those_looked_at_are_told():
    looked = Looked(images=3, bad=[("a.jpg", "truncated")])
    (finding,) = image_findings(looked, 32, from_scratch=True)
    assert finding.what == "1 of 3 images looked at cannot be read, the first: a.jpg: truncated."
    events: list[Event] = []
    tell([finding], events.append)
    assert events == [Warned(str(finding))]


def test_masks_that_mark_next_to_nothing_are_told():
    pixels, images = np.zeros(256, np.int64), np.zeros(256, np.int64)
    pixels[[0, 1]] = 99_900, 100
    stats = MaskStats(pixels, images, np.arange(10), ())
    (finding,) = mask_stats_findings(stats, ("background", "cell"))
    assert "99.90% of the labelled pixels are 'background': the others are 10 an image" in finding.what
    pixels[[0, 1]] = 60_000, 40_000
    assert kinds(mask_stats_findings(stats, ("background", "cell"))) == []
    pixels[255] = 100_000_000
    assert kinds(mask_stats_findings(stats, ("background", "cell"))) == ["tiny-masks"]


def tokenizer_run_of(folder: Path, **metrics: float) -> Path:
    """The files of a run of train-tokenizer that are read, with these metrics of held-out images."""
    checkpoint = folder / "checkpoints" / "step-0000004"
    checkpoint.mkdir(parents=True)
    (folder / "config.toml").write_text('command = "train-tokenizer"\n')
    (checkpoint / "config.json").write_text(json.dumps({"beit": {"architecture": {"vocab_size": 512}}}))
    row = {"step": 4} | {f"held_out_{name}": value for name, value in metrics.items()}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def test_a_given_tokenizer_that_has_collapsed_is_told(tmp_path: Path):
    collapsed = tokenizer_run_of(tmp_path / "a", perplexity=1.4, codes_used=3, commonest_share=0.9)
    good = tokenizer_run_of(tmp_path / "b", perplexity=300.0, codes_used=500, commonest_share=0.01)
    unmeasured = tokenizer_run_of(tmp_path / "c")
    inside = tmp_path / "pretrained"
    shutil.copytree(collapsed, inside / "tokenizer")
    for reference in (collapsed, collapsed / "checkpoints" / "step-0000004", inside):
        (finding,) = given_tokenizer_findings(str(reference))
        assert (finding.kind, finding.severity) == ("tokenizer-few-codes", "warning")
        assert finding.what.startswith(
            f"In --tokenizer {reference} the codebook has collapsed (3 of 512 codes, as many as 1 used evenly"
        )
        assert finding.way_out.startswith("Train another one first: beit train-tokenizer")
    for reference in (good, unmeasured, tmp_path / "none", "dall-e", "hf://a/b"):
        assert list(given_tokenizer_findings(str(reference))) == []


@pytest.mark.parametrize("accuracy", [0.1, 0.9])
def test_a_finetuning_from_a_run_that_has_learnt_nothing_is_told(
    tmp_path: Path, beit: Beit, labelled_folder: Path, pretrained_run: Path, accuracy: float
):
    run = tmp_path / "run"
    shutil.copytree(pretrained_run, run)
    figures = {"masked_accuracy": accuracy, "baseline_accuracy": 0.2, "unigram_entropy": 2.5}
    figures["masked_loss"] = 2.6 if accuracy < 0.2 else 1.5
    row = {"step": 4} | {f"held_out_{name}": value for name, value in figures.items()}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    args = ("--recipe", "tiny", "--size", 32, "--steps", 2, "--batch-size", 4, "--workers", 0, "--device", "cpu")
    ended = beit("finetune", labelled_folder, "--init", run, *args, "--dry-run", "--json")
    assert ended.code == 0, ended.err
    told = [each["what"] for each in ended.lines[0]["preflight"] if each["kind"] == "init-learnt-nothing"]
    expected = f"--init {run} has learnt nothing yet, by its own report: random weights may do as well."
    assert told == ([expected] if accuracy < 0.2 else [])


def test_a_dry_run_with_a_collapsed_tokenizer_says_so(tmp_path: Path, beit: Beit, tokenizer_run: Path):
    run = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_run, run)
    row = {"step": 4, "held_out_perplexity": 1.2, "held_out_codes_used": 2, "held_out_commonest_share": 0.9}
    (run / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    line = ("pretrain", "sample", *TINY, "--limit", 40, "--steps", 2, "--tokenizer", run, "--device", "cpu")
    ended = beit(*line, "--dry-run", "--json")
    assert "tokenizer-few-codes" in [each["kind"] for each in ended.lines[0]["preflight"]]
    assert f"warning: In --tokenizer {run} the codebook has collapsed" in ended.err


def test_the_finetuning_that_is_proposed_is_that_of_the_guide():
    (few,) = few_findings("pretrain", 10)
    (alone,) = one_image_findings("pretrain", 1)
    (line,) = re.findall("`([^`]+)`", few.way_out)
    assert line in alone.way_out
    guide = (ROOT / "docs/guides/own-images.md").read_text()
    assert line.replace("LABELLED", "labelled/") in guide
    config, flags = flags_of(line)
    assert resolve(config, flags | {"out": "runs/it"}).config.recipe == "base-22k"
