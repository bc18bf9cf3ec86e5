"""What a run is measured on, and what may change between a run and its resume."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from beitcli.config.finetune import FinetuneConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.sources.open_data import open_data
from beitcli.data.sources.subset import Subset
from beitcli.engine.classification.finetune import _validation
from beitcli.engine.events import Progress
from beitcli.engine.pretrain import pretrain
from beitcli.engine.report.page import report_document
from beitcli.engine.train_tokenizer import train_tokenizer
from beitcli.engine.trainer.data import hold_out, hold_out_annotated, validation_images
from beitcli.engine.trainer.dry_run import duration
from beitcli.errors import DataError, UsageError
from beitcli.models.checkpoints.open import open_checkpoint
from beitcli.runtime.distributed.world import SINGLE_PROCESS
from beitcli.runtime.storage.checkpoint import newest_checkpoint

TINY = ("--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--workers", 0, "--device", "cpu")
TINY_CLASSIFIER = ("--recipe", "tiny", "--size", 32, "--batch-size", 8, "--workers", 0, "--device", "cpu")


def copies(source: Path, target: Path, count: int) -> Path:
    """`count` images of the labelled folder, without its classes."""
    target.mkdir()
    pictures = sorted(path for path in source.rglob("*") if path.is_file())
    for number in range(count):
        picture = pictures[number % len(pictures)]
        shutil.copy(picture, target / f"{number:03d}{picture.suffix}")
    return target


def test_hold_out_leaves_no_image_in_both_parts(labelled_folder):
    source = open_data([str(labelled_folder)])
    held = hold_out(source, 5, seed=3)
    assert held.is_apart
    assert held.name == "1 held-out image"
    kept_out = {held.measured.path(index) for index in range(len(held.measured))}
    trained_on = {held.training.path(index) for index in range(len(held.training))}
    assert not kept_out & trained_on
    assert len(kept_out | trained_on) == len(source)


def test_hold_out_of_none_measures_on_a_part_of_training(labelled_folder):
    held = hold_out(open_data([str(labelled_folder)]), 0, seed=3)
    assert not held.is_apart
    assert len(held.training) == 24
    assert len(hold_out(open_data(["sample"]), 0, seed=0).measured) == 512


def test_unreadable_held_out_image_is_named_and_the_run_goes_on(tmp_path, labelled_folder, tokenizer_run, beit):
    data = copies(labelled_folder, tmp_path / "data", 24)
    source = open_data([str(data)])
    victim = hold_out(source, 512, seed=0).measured.path(0)
    Path(victim).write_bytes(b"no image at all")
    ended = beit(
        "pretrain", data, *TINY, "--tokenizer", tokenizer_run, "--steps", 2, "--out", tmp_path / "run", "--json"
    )
    assert ended.code == 0, ended.err
    assert ended.lines[0]["measured_on"] == "23 training images"
    named = [json.loads(line)["path"] for line in (tmp_path / "run" / "bad-images.jsonl").read_text().splitlines()]
    assert named == [victim]


class Counted(Subset):
    """All images of a source; counts those that are decoded."""

    decoded = 0

    def image(self, index: int) -> Image.Image:
        self.decoded += 1
        return super().image(index)


def test_hold_out_decodes_up_to_the_first_readable_image_and_no_further(tmp_path, labelled_folder):
    data = copies(labelled_folder, tmp_path / "data", 60)
    source = Counted(open_data([str(data)]), np.arange(60))
    held = hold_out(source, 512, seed=0)
    assert (len(held.measured), held.bad, source.decoded) == (3, (), 1)
    Path(held.measured.path(0)).write_bytes(b"no image at all")
    again = hold_out(source, 512, seed=0)
    assert [again.measured.path(index) for index in range(3)] == [held.measured.path(index) for index in range(3)]
    assert source.decoded == 3


def test_one_of_the_held_out_images_that_is_unreadable_is_told_listed_and_counted(tmp_path, labelled_folder, beit):
    data, run = copies(labelled_folder, tmp_path / "data", 40), tmp_path / "run"
    held = hold_out(open_data([str(data)]), 512, seed=0)
    victim = held.measured.path(1)
    Path(victim).write_bytes(b"no image at all")
    arguments = ("pretrain", data, *TINY, "--target", "pixels", "--steps", 2, "--out", run, "--json")
    for argv in (arguments, ("pretrain", "--out", run, "--resume", "--json")):
        ended = beit(*argv)
        assert ended.code == 0, ended.err
        assert ended.lines[0]["measured_on"] == "2 held-out images, 1 image unreadable"
        listed = [json.loads(line) for line in (run / "bad-images.jsonl").read_text().splitlines()]
        assert [each["path"] for each in listed] == [victim]
        assert ("1 measured image is left out, the first: " in " ".join(ended.err.split())) == (argv is arguments)


def test_measured_images_that_are_training_images_are_called_so_everywhere(tmp_path, labelled_folder, beit):
    """A twentieth of 6 is none."""
    data, run = copies(labelled_folder, tmp_path / "data", 6), tmp_path / "run"
    arguments = ("pretrain", data, *TINY, "--target", "pixels", "--steps", 2)
    planned = beit(*arguments, "--dry-run", "--json")
    assert planned.lines[0]["plan"]["measured"].endswith(", 6 training images")
    ended = beit(*arguments, "--out", run, "--json")
    assert ended.code == 0, ended.err
    assert "pretrain: step 2, training images: loss" in ended.err
    assert "(--measure-share 0.1), 6 training images" in " ".join(ended.err.split())
    card = (run / "README.md").read_text()
    assert "loss (6 training images)" in card
    document = report_document([run])
    (told,) = document["runs"]
    assert told["measured_images"] == "training images"
    assert told["verdict"]["grade"] in ("unknown", "early")
    assert "training images" in told["verdict"]["text"]
    assert told["facts"]["measured on"] == "training images"
    (chart,) = (each for each in document["charts"] if each["name"] == "loss")
    assert [line["label"] for line in chart["series"] if line["role"] == "held-out"] == ["training images"]
    assert document["previews"][0]["images"] == "training images"
    for text in (planned.err, ended.err, card):
        assert "held-out" not in text
    assert not (run / "bad-images.jsonl").exists()  # none was bad


@pytest.mark.parametrize(
    ("images", "holdout", "kept"),
    [(4, 50, 0), (24, 50, 4), (60, 50, 12), (250, 50, 50), (999, 50, 50), (2000, 50, 100), (60, 3, 3), (60, 0, 3)],
)
def test_a_finetuning_holds_out_a_fifth_of_few_images_and_a_twentieth_of_many(images, holdout, kept):
    config = resolve(FinetuneConfig, {"data": ["sample"], "init": "random", "holdout": holdout}).config
    assert validation_images(config, images, 1024) == kept


@pytest.mark.parametrize(
    ("images", "holdout", "most", "kept"),
    [
        (100_000, 50, 1024, 1024), (100_000, 2000, 1024, 2000), (100_000, 2000, 512, 2000), (100_000, 0, 512, 512),
        (5000, 2000, 512, 1000), (5000, 600, 512, 600), (100_000, 900, 1024, 1024),
    ],
)  # fmt: skip
def test_a_twentieth_of_many_images_has_a_limit_and_what_is_asked_for_has_none(images, holdout, most, kept):
    config = resolve(FinetuneConfig, {"data": ["sample"], "init": "random", "holdout": holdout}).config
    assert validation_images(config, images, most) == kept


class Drawn(Subset):
    """Images of a source over and over, each of an alternating class."""

    classes = ("a", "b")

    def label(self, index: int) -> int:
        return index % 2


def test_every_task_holds_out_as_many_images_as_are_asked_for(labelled_folder):
    """Of 12,000 images 2,400 are a fifth."""
    source = Drawn(open_data([str(labelled_folder)]), np.arange(12_000) % 24)
    config = resolve(FinetuneConfig, {"data": ["sample"], "init": "random", "holdout": 1500}).config
    held, _ = _validation(config, source, 32, lambda event: None, SINGLE_PROCESS)
    assert (len(held.measured), len(held.training)) == (1500, 10_500)
    training, measured, name, is_apart = hold_out_annotated(source, lambda some: Subset(source, some), config)
    assert (len(measured), len(training), name, is_apart) == (1500, 10_500, "1,500 held-out images", True)


def test_images_to_hold_out_are_refused_beside_images_to_measure_on():
    flags = {"data": ["sample"], "init": "random", "val": "sample"}
    with pytest.raises(UsageError, match="--holdout has no effect with --val"):
        resolve(FinetuneConfig, flags | {"holdout": 2000})
    assert resolve(FinetuneConfig, flags).config.holdout == 50


def test_a_finetuning_of_an_earlier_version_goes_on_with_the_images_it_held_out(finetuned_run, tmp_path):
    saved = Path(shutil.copytree(finetuned_run, tmp_path / "run")) / "config.toml"
    flags = {"out": str(saved.parent), "resume": True}
    assert validation_images(resolve(FinetuneConfig, flags).config, 24, 1024) == 4
    saved.write_text("".join(line for line in saved.read_text().splitlines(True) if not line.startswith("holdout")))
    assert validation_images(resolve(FinetuneConfig, flags).config, 24, 1024) == 1


def listed(run: Path) -> list[str]:
    return [json.loads(line)["path"] for line in (run / "bad-images.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_unreadable_held_out_images_count_with_all_of_data(tmp_path, labelled_folder, beit, command):
    """Half of the held-out images, which are 2.5% of DATA."""
    data, base = tmp_path / "data", ("--steps", 1, "--json")
    data.mkdir()
    for name in ("blue", "red"):
        copies(labelled_folder / name, data / name, 60)
    base += ("--target", "pixels", *TINY) if command == "pretrain" else ("--init", "random", *TINY_CLASSIFIER)
    held = hold_out(open_data([str(data)]), 512, seed=0)
    base += ("--holdout", 0) if command == "finetune" else ()  # a twentieth of both
    victims = [held.measured.path(index) for index in (1, 3, 5)]
    for victim in victims:
        Path(victim).write_bytes(b"no image at all")
    ended = beit(command, data, *base, "--out", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert ended.lines[0]["measured_on"] == "6 held-out images, 3 images unreadable"
    assert sorted(listed(tmp_path / "run")) == sorted(victims)
    ended = beit(command, data, *base, "--out", tmp_path / "strict", "--max-bad", 0.02)
    assert ended.code == 3
    assert "3 of 120 images cannot be read, 2 are allowed" in " ".join(ended.err.split())
    assert sorted(listed(tmp_path / "strict")) == sorted(victims)
    assert (tmp_path / "strict" / "checkpoints" / "step-0000001").is_dir()
    ended = beit(command, "--out", tmp_path / "strict", "--resume", "--max-bad", 0.03, "--json")
    assert ended.code == 0, ended.err
    assert ended.lines[0]["measured_on"] == "6 held-out images, 3 images unreadable"


def test_unreadable_images_of_val_have_a_limit_of_their_own_and_are_listed_past_it(tmp_path, labelled_folder, beit):
    val, run = tmp_path / "val", tmp_path / "run"
    shutil.copytree(labelled_folder, val)
    victims = sorted(val.rglob("*.png"))[1:3]
    for victim in victims:
        victim.write_bytes(b"no image at all")
    data = (labelled_folder, labelled_folder, labelled_folder, "--val", val)  # 5% of 24 is one, of 96 it is four
    ended = beit("finetune", *data, "--init", "random", *TINY_CLASSIFIER, "--steps", 1, "--out", run)
    assert ended.code == 3
    assert "2 of 24 images cannot be read, 1 are allowed" in " ".join(ended.err.split())
    assert listed(run) == [str(victim) for victim in victims]
    ended = beit("finetune", "--out", run, "--resume", "--max-bad", 0.1, "--json")
    assert ended.code == 0, ended.err
    assert ended.lines[0]["measured_on"] == f"{val}, 2 images unreadable"


@pytest.mark.parametrize("target", ["tokens", "pixels", "tokenizer"])
def test_held_out_images_of_which_none_is_readable_any_longer_end_the_run_with_their_reason(
    tmp_path, labelled_folder, tokenizer_run, target
):
    """It vanishes between the start and the first measuring."""
    data, run = copies(labelled_folder, tmp_path / "data", 24), tmp_path / "run"
    victim = Path(hold_out(open_data([str(data)]), 512, seed=0).measured.path(0))
    content = victim.read_bytes()
    flags = {"recipe": "tiny", "data": [str(data)], "steps": 2, "batch_size": 4, "workers": 0, "device": "cpu"}
    flags |= {"out": str(run), "log_every": 1}
    if target == "tokenizer":
        train, kind, flags = train_tokenizer, TrainTokenizerConfig, flags | {"size": 16, "width": 8}
    else:
        train, kind, flags = pretrain, PretrainConfig, flags | {"image_size": 32, "num_masked": 6, "target": target}
        flags |= {"tokenizer": str(tokenizer_run)} if target == "tokens" else {}

    def removes(event: object) -> None:
        if isinstance(event, Progress) and event.unit == "step":
            victim.write_bytes(b"")

    with pytest.raises(DataError, match=r"1 of 1 image cannot be read: .*empty file") as ended:
        train(resolve(kind, flags).config, removes)
    assert ended.value.exit_code == 3
    assert str(victim) in ended.value.message
    assert listed(run) == [str(victim)]
    victim.write_bytes(content)
    resumed = {"out": str(run), "resume": True, "workers": 0, "device": "cpu"}
    assert train(resolve(kind, resumed).config).measured_on == "1 held-out image"


def test_more_bad_images_may_be_allowed_when_a_run_goes_on(tmp_path, labelled_folder, tokenizer_run, beit):
    data = copies(labelled_folder, tmp_path / "data", 24)
    for number in (3, 7, 11, 15):
        (data / f"{number:03d}.png").write_bytes(b"")
    run = tmp_path / "run"
    arguments = ("pretrain", data, *TINY, "--tokenizer", tokenizer_run, "--steps", 6, "--save-every", 1, "--out", run)
    assert beit(*arguments).code == 3
    ended = beit("pretrain", "--out", run, "--resume", "--max-bad", 0.5)
    assert ended.code == 0, ended.err


def test_run_with_its_own_tokenizer_can_be_moved(tmp_path, labelled_folder, beit, picture):
    ended = beit("pretrain", labelled_folder, *TINY, "--steps", 2, "--tokenizer-recipe", "tiny", "--tokenizer-steps", 3,
                 "--out", tmp_path / "a")  # fmt: skip
    assert ended.code == 0, ended.err
    (tmp_path / "a").rename(tmp_path / "b")
    settings = open_checkpoint(str(tmp_path / "b")).settings
    assert settings["tokenizer"]["reference"] == "own"
    ended = beit("mask-preview", picture("photo.png"), "--model", tmp_path / "b", "-o", tmp_path / "out.png")
    assert ended.code == 0, ended.err


def test_tokenizer_that_was_exchanged_is_refused(tmp_path, labelled_folder, tokenizer_run, beit, picture):
    tokenizer = tmp_path / "tokenizer"
    shutil.copytree(tokenizer_run, tokenizer)
    run = tmp_path / "run"
    arguments = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer, "--steps", 2, "--out", run)
    assert beit(*arguments).code == 0
    other = newest_checkpoint(tokenizer)
    assert other is not None
    shutil.rmtree(other.path)  # the checkpoint before it has other weights
    assert beit("pretrain", "--out", run, "--resume").code == 4
    ended = beit("mask-preview", picture("photo.png"), "--model", run, "-o", tmp_path / "out.png")
    assert ended.code == 4
    assert "not the one" in ended.err


def test_finetune_measures_on_the_val_split_of_its_folder(tmp_path, labelled_folder, beit):
    for split in ("train", "val"):
        shutil.copytree(labelled_folder, tmp_path / "data" / split)
    shutil.rmtree(tmp_path / "data" / "val" / "blue")
    ended = beit("finetune", tmp_path / "data", "--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 1,
                 "--batch-size", 4, "--workers", 0, "--out", tmp_path / "run", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.lines[0]["images"] == 16
    assert ended.lines[0]["measured_on"].endswith("split val")
    ended = beit("finetune", tmp_path / "data", "--init", "random", "--recipe", "tiny", "--holdout", 5, "--dry-run")
    assert ended.code == 2
    assert "--holdout 5 has no effect: DATA has a validation split" in ended.err
    settings = tmp_path / "settings.toml"  # as of a run on other data
    settings.write_text("holdout = 5\n")
    ended = beit(
        "finetune", tmp_path / "data", "--init", "random", "--recipe", "tiny", "--config", settings, "--dry-run"
    )
    assert ended.code == 0, ended.err


@pytest.mark.parametrize("kept_in", ["folder", "tar", "parquet"])
def test_finetune_measures_on_the_validation_split_of_any_format(tmp_path, labelled_folder, beit, kept_in):
    for split in ("Training", "dev", "test"):
        shutil.copytree(labelled_folder, tmp_path / "data" / split)
    shutil.rmtree(tmp_path / "data" / "dev" / "blue")
    data = tmp_path / "data"
    if kept_in == "tar":
        data = tmp_path / "data.tar"
        with tarfile.open(data, "w") as archive:
            for path in sorted((tmp_path / "data").iterdir()):
                archive.add(path, path.name)
    if kept_in == "parquet":
        data = tmp_path / "rows"
        data.mkdir()
        for split in (tmp_path / "data").iterdir():
            files = sorted(split.rglob("*.*"))
            table = {"image": [file.read_bytes() for file in files], "label": [file.parent.name for file in files]}
            pq.write_table(pa.table(table), data / f"{split.name}.parquet")
    ended = beit("finetune", data, "--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 1,
                 "--batch-size", 4, "--workers", 0, "--out", tmp_path / "run", "--json")  # fmt: skip
    assert ended.code == 0, ended.err
    assert ended.lines[0]["images"] == 16
    assert ended.lines[0]["measured_on"] == f"{data}, split val"
    assert "Data: 24 images of 3 classes" in ended.err
    assert "--split reads another." in ended.err


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--rand-augment", "foo"), ("--beta2", "1.5"), ("--seed", str(1 << 64)), ("--min-lr", "nan"), ("--mixup", "-1"),
     ("--weight-decay", "-1"), ("--warmup-steps", "-5")],
)  # fmt: skip
def test_setting_that_cannot_be_is_refused_before_anything_is_made(tmp_path, labelled_folder, beit, flag, value):
    ended = beit("finetune", labelled_folder, "--init", "random", "--recipe", "tiny", "--size", 32, "--steps", 1,
                 "--out", tmp_path / "run", flag, value)  # fmt: skip
    assert ended.code == 2, ended.err
    assert flag in ended.err
    assert not (tmp_path / "run").exists()


def test_fp16_goes_on_with_its_loss_scale(tmp_path, labelled_folder, tokenizer_run, beit):
    base = ("pretrain", labelled_folder, *TINY, "--tokenizer", tokenizer_run, "--steps", 4, "--save-every", 2)
    assert beit(*base, "--precision", "fp16", "--out", tmp_path / "a").code == 0
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shutil.rmtree(tmp_path / "b" / "checkpoints" / "step-0000004")
    assert beit("pretrain", "--out", tmp_path / "b", "--resume").code == 0
    ends = [newest_checkpoint(tmp_path / name) for name in "ab"]
    assert ends[0] is not None
    assert ends[1] is not None
    assert ends[0].trainer["scaler"] == ends[1].trainer["scaler"]
    same = [end.path.joinpath("model.safetensors").read_bytes() for end in ends if end is not None]
    assert same[0] == same[1]


def test_duration_is_told_in_the_unit_a_person_takes():
    assert [duration(90), duration(600), duration(9000), duration(400_000)] == [
        "90 seconds", "10.0 minutes", "2.5 hours", "4.6 days",
    ]  # fmt: skip
