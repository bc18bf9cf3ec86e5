"""Bad input, through the command line: the exit code, a message with the way out, and nothing lost that was there."""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import struct
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from beitcli.cli.app import main
from tests.helpers.forked import forked

PRETRAIN = ["pretrain", "--recipe", "tiny", "--image-size", 32, "--num-masked", 6, "--batch-size", 8, "--workers", 0]
FINETUNE = ["finetune", "--recipe", "tiny", "--init", "random", "--size", 32, "--steps", 2, "--batch-size", 8]
NEWEST, BEFORE = "step-0000004", "step-0000002"


def contents(folder: Path) -> dict[str, str]:
    """Every file below a folder with its hash, and every folder."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


def assert_refused(ended: object, code: int, *said: str) -> None:
    """One line what is wrong, one line how to put it right, nothing on stdout."""
    assert (ended.code, ended.out) == (code, ""), ended.err
    *_, wrong, way_out = ended.err.splitlines()
    assert wrong.startswith("error: ")
    assert way_out.startswith("  ")
    assert "Traceback" not in ended.err
    for words in said:
        assert words in wrong + way_out


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims `width` x `height` pixels of gray, and holds the first few rows of them."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(width + 1) * 4)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


@pytest.fixture
def mixed_folder(labelled_folder: Path, tmp_path: Path) -> Path:
    """The 24 good images with four bad ones among them."""
    folder = shutil.copytree(labelled_folder, tmp_path / "mixed")
    whole = (folder / "red" / "00.jpg").read_bytes()
    (folder / "blue" / "03-cut.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "green" / "text.jpg").write_text("This is a letter, not a picture.\n")
    (folder / "green" / "zero.png").write_bytes(b"")
    (folder / "red" / "vast.png").write_bytes(png_header(30_000, 30_000))
    return folder


BAD = {
    "blue/03-cut.jpg": "truncated",
    "green/text.jpg": "text",
    "green/zero.png": "empty file",
    "red/vast.png": "900.0 megapixels",
}


def assert_reported(documents: list[dict[str, str]], folder: Path) -> None:
    """Each bad image once, with its reason."""
    told = {str(Path(document["path"]).relative_to(folder)): document["error"] for document in documents}
    assert set(told) == set(BAD)
    assert len(documents) == len(BAD)
    for name, reason in BAD.items():
        assert reason in told[name]


# Data that is not there


COMMANDS = [
    lambda data, _: [*PRETRAIN, "--steps", 2, data],
    lambda data, _: ["train-tokenizer", "--recipe", "tiny", "--steps", 2, data],
    lambda data, _: [*FINETUNE, data],
    lambda data, run: ["tokenize", "--tokenizer", run("tokenizer_run"), data],
    lambda data, _: ["mask-preview", data],
    lambda data, run: ["predict", run("finetuned_run"), data],
    lambda data, run: ["eval", run("finetuned_run"), data],
    lambda data, run: ["attn-map", "--model", run("pretrained_run"), data],
]
each_command = pytest.mark.parametrize("argv", COMMANDS, ids=lambda argv: str(argv("", lambda name: name)[0]))


@each_command
def test_missing_folder_is_refused_with_the_name_that_is_near(
    beit: Callable, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photographs").mkdir()
    ended = beit(*argv(str(tmp_path / "photographsd"), request.getfixturevalue))
    assert_refused(ended, 3, "photographsd' does not exist", f"Did you mean '{tmp_path}/photographs'?")
    assert [path.name for path in tmp_path.iterdir()] == ["photographs"]


@each_command
def test_folder_without_images_is_refused(
    beit: Callable, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argv: Callable
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes" / "deep").mkdir(parents=True)
    (tmp_path / "notes" / "deep" / "a.txt").write_text("a.png")
    before = contents(tmp_path)
    assert_refused(beit(*argv(str(tmp_path / "notes"), request.getfixturevalue)), 3, "No images below", ".jpg")
    assert contents(tmp_path) == before


def test_finetune_refuses_a_single_class(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(labelled_folder / "red", tmp_path / "data" / "red")
    ended = beit(*FINETUNE, tmp_path / "data", "--out", tmp_path / "run")
    assert_refused(ended, 3, "one class only, 'red'", "FOLDER/CLASS/image.jpg")
    assert not (tmp_path / "run").exists()


def test_finetune_refuses_images_without_classes(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    assert_refused(beit(*FINETUNE, labelled_folder / "red", "--out", tmp_path / "run"), 3, "no labels")
    shutil.copytree(labelled_folder, tmp_path / "data")
    shutil.copy(labelled_folder / "red" / "00.jpg", tmp_path / "data" / "stray.jpg")
    assert_refused(beit(*FINETUNE, tmp_path / "data", "--out", tmp_path / "run"), 3, "stray.jpg")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("command", ["eval", "finetune"])
def test_classes_that_the_model_does_not_know_are_refused(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, tmp_path: Path, command: str
) -> None:
    other = shutil.copytree(labelled_folder, tmp_path / "other")
    (other / "blue").rename(other / "azure")
    if command == "eval":
        ended = beit("eval", finetuned_run, other)
    else:
        ended = beit(*FINETUNE, labelled_folder, "--val", other, "--out", tmp_path / "run")
    assert_refused(ended, 3, "namely: 'azure'", "blue, green, red.")
    assert not (tmp_path / "run").exists()


def test_resume_refuses_data_that_has_changed(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    argv = [*PRETRAIN, data, "--tokenizer", tokenizer_run, "--steps", 2, "--out", tmp_path / "run"]
    assert beit(*argv).code == 0
    (data / "red" / "00.jpg").rename(data / "red" / "zz.jpg")
    before = contents(tmp_path / "run")
    assert_refused(beit("pretrain", "--out", tmp_path / "run", "--resume"), 2, "added, removed or renamed")
    assert contents(tmp_path / "run") == before


def test_resume_on_another_split_says_that_earlier_versions_knew_fewer_names(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    data = Path(shutil.copytree(labelled_folder, tmp_path / "data" / "classes"))
    argv = [*PRETRAIN, data.parent, "--tokenizer", tokenizer_run, "--steps", 2, "--out", tmp_path / "run"]
    assert beit(*argv).code == 0
    data.rename(data.parent / "train")
    shutil.copytree(labelled_folder, data.parent / "validation")
    ended = beit("pretrain", "--out", tmp_path / "run", "--resume")
    assert_refused(ended, 2, "added, removed or renamed", "Earlier versions knew fewer names of splits")


def test_training_refuses_names_that_its_settings_cannot_hold(
    beit: Callable, picture: Callable, tmp_path: Path
) -> None:
    data = Path(f"{tmp_path}/d\udcff")
    picture("data/a.png").parent.rename(data)
    ended = beit(*PRETRAIN, data, "--steps", 2, "--out", tmp_path / "run")
    assert_refused(ended, 2, "not UTF-8", "link")
    assert not (tmp_path / "run").exists()
    assert beit("mask-preview", data).code == 0


# Images that cannot be read


def test_training_skips_bad_images_names_them_and_completes(
    beit: Callable, mixed_folder: Path, tokenizer_run: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    argv = [*PRETRAIN, mixed_folder, "--tokenizer", tokenizer_run, "--holdout", 0, "--steps", 8, "--max-bad", 0.3]
    ended = beit(*argv, "--out", run, "--json")
    assert ended.code == 0
    assert ended.lines[0]["step"] == 8
    assert_reported([json.loads(line) for line in (run / "bad-images.jsonl").read_text().splitlines()], mixed_folder)


def test_training_skips_the_same_images_whatever_the_workers(
    beit: Callable, mixed_folder: Path, tmp_path: Path
) -> None:
    weights = []
    for workers in (0, 2):
        run = tmp_path / f"run{workers}"
        flags = ["--vocab-size", 8, "--size", 16, "--width", 8, "--steps", 4, "--batch-size", 8, "--max-bad", 0.3]
        argv = ["train-tokenizer", mixed_folder, "--recipe", "tiny", *flags, "--workers", workers, "--out", run]
        assert beit(*argv).code == 0
        weights.append((run / "checkpoints" / NEWEST / "model.safetensors").read_bytes())
        weights.append((run / "bad-images.jsonl").read_bytes())
    assert weights[:2] == weights[2:]


@pytest.mark.parametrize("max_bad", [[], ["--max-bad", 0], ["--max-bad", 0.1]], ids=str)
def test_training_stops_past_max_bad_with_examples(
    beit: Callable, mixed_folder: Path, tokenizer_run: Path, tmp_path: Path, max_bad: list[object]
) -> None:
    run = tmp_path / "run"
    ended = beit(*PRETRAIN, mixed_folder, "--tokenizer", tokenizer_run, "--steps", 8, "--out", run, *max_bad)
    assert_refused(ended, 3, "cannot be read", "--max-bad", str(run / "bad-images.jsonl"))
    assert any(f"{mixed_folder / name}: " in ended.err for name in BAD)
    assert f"Go on with: beit pretrain --out {run} --resume --workers 0 --max-bad SHARE" in ended.err
    assert beit("pretrain", "--out", run, "--resume", "--max-bad", 0.25, "--json").lines[0]["step"] == 8


def test_finetune_past_max_bad_of_its_validation_says_how_to_go_on(
    beit: Callable, labelled_folder: Path, mixed_folder: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    ended = beit(*FINETUNE, labelled_folder, "--val", mixed_folder, "--workers", 0, "--out", run)
    assert_refused(ended, 3, "4 of 28 images cannot be read", "--max-bad", "--resume")
    assert beit("finetune", "--out", run, "--resume", "--max-bad", 0.25, "--json").lines[0]["step"] == 2


@pytest.mark.parametrize(("max_bad", "code"), [(0.05, 3), (0.2, 0)])
def test_eval_counts_bad_images_against_max_bad(
    beit: Callable, finetuned_run: Path, mixed_folder: Path, max_bad: float, code: int
) -> None:
    ended = beit("eval", finetuned_run, mixed_folder, "--max-bad", max_bad)
    assert ended.code == code
    if code:
        assert_refused(ended, 3, "4 of 28 images cannot be read", "03-cut.jpg: truncated", "--max-bad")
    else:
        assert (ended.lines[0]["images"], ended.lines[0]["bad"]) == (24, 4)
        assert "4 unreadable" in ended.err


PER_IMAGE = [
    lambda data, run: ["tokenize", "--tokenizer", run("tokenizer_run"), "--batch-size", 5, data],
    lambda data, _: ["mask-preview", data],
    lambda data, run: ["predict", run("finetuned_run"), "--batch-size", 5, data],
    lambda data, run: ["attn-map", "--model", run("pretrained_run"), data],
]


@pytest.mark.parametrize("argv", PER_IMAGE, ids=lambda argv: str(argv("", lambda name: name)[0]))
def test_bad_images_get_an_error_line_in_their_place_and_the_others_are_done(
    beit: Callable, request: pytest.FixtureRequest, mixed_folder: Path, argv: Callable
) -> None:
    started = time.monotonic()
    ended = beit(*argv(mixed_folder, request.getfixturevalue))
    assert time.monotonic() - started < 20
    assert ended.code == 3
    documents = ended.lines
    assert [document["path"] for document in documents] == [str(path) for path in sorted(mixed_folder.rglob("*.*"))]
    bad = [document for document in documents if "error" in document]
    assert all(set(document) == {"path", "error"} for document in bad)
    assert_reported(bad, mixed_folder)
    assert "error: 4 of 28 images cannot be read." in ended.err


def test_tokenize_on_bad_skip_leaves_them_out_and_ends_well(
    beit: Callable, mixed_folder: Path, tokenizer_run: Path
) -> None:
    ended = beit("tokenize", mixed_folder, "--tokenizer", tokenizer_run, "--on-bad", "skip")
    assert ended.code == 0
    assert len(ended.lines) == 24
    assert all("tokens" in document for document in ended.lines)


def test_tokenize_on_bad_fail_stops_at_the_first(beit: Callable, mixed_folder: Path, tokenizer_run: Path) -> None:
    ended = beit("tokenize", mixed_folder, "--tokenizer", tokenizer_run, "--on-bad", "fail", "--batch-size", 1)
    assert ended.code == 3
    assert [Path(document["path"]).name for document in ended.lines] == ["00.jpg", "01.png", "02.jpg"]
    assert "03-cut.jpg' cannot be read: truncated" in ended.err
    assert "--on-bad" in ended.err


def test_image_that_is_vast_costs_no_memory(tmp_path: Path) -> None:
    """900 megapixels would take 2.7 GB."""
    (tmp_path / "vast.png").write_bytes(png_header(30_000, 30_000))

    def work() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        code = main(["mask-preview", str(tmp_path / "vast.png")])
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before, file=sys.stderr)
        return code

    ended = forked(work)
    assert ended.code == 3
    assert "900.0 megapixels" in json.loads(ended.out)["error"]
    assert int(ended.err.splitlines()[-1]) < 500_000  # kB


# Settings that cannot be met


@pytest.mark.parametrize("count", [0, 300])
def test_num_masked_that_cannot_be_met_is_refused(
    beit: Callable, picture: Callable, tmp_path: Path, count: int
) -> None:
    image = picture("data/a.png")
    assert_refused(beit("mask-preview", image, "--num-masked", count), 2, str(count), "196", "--ratio")
    size = ["--image-size", 224, "--patch-size", 16, "--num-masked", count]
    ended = beit("pretrain", image.parent, "--recipe", "tiny", *size, "--out", tmp_path / "run")
    assert_refused(ended, 2, str(count), "196", "--ratio")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "size", [["--image-size", 225], ["--image-size", 60, "--patch-size", 16], ["--patch-size", 128]], ids=str
)
def test_image_size_that_the_patch_does_not_divide_is_refused(beit: Callable, tmp_path: Path, size: list) -> None:
    ended = beit("pretrain", "sample", "--recipe", "tiny", *size, "--out", tmp_path / "run")
    assert_refused(ended, 2, "is not divided by patch size", "multiple")
    assert not (tmp_path / "run").exists()


def test_sizes_that_a_model_cannot_take_are_refused(
    beit: Callable, tokenizer_run: Path, finetuned_run: Path, pretrained_run: Path, picture: Callable
) -> None:
    image = picture("a.png")
    assert_refused(beit("tokenize", image, "--tokenizer", tokenizer_run, "--size", 18), 2, "--size 18", "multiple of 4")
    assert beit("predict", finetuned_run, image, "--size", 33).code == 2
    assert beit("attn-map", image, "--model", pretrained_run, "--size", 33).code == 2


@pytest.mark.parametrize("setting", [["--model", "small"], ["--patch-size", 16], ["--positions", "shared"]], ids=str)
def test_resume_with_another_architecture_is_refused(beit: Callable, pretrained_run: Path, setting: list) -> None:
    before = contents(pretrained_run)
    ended = beit("pretrain", "--out", pretrained_run, "--resume", *setting)
    assert_refused(ended, 2, f"{setting[0]}: the run has", str(setting[1]))
    assert contents(pretrained_run) == before


def test_resume_of_a_checkpoint_that_does_not_fit_its_settings_is_refused(
    beit: Callable, pretrained_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    settings = (run / "config.toml").read_text()
    (run / "config.toml").write_text(settings.replace('model = "tiny"', 'model = "small"'))
    before = contents(run / "checkpoints")
    ended = beit("pretrain", "--out", run, "--resume")
    assert_refused(ended, 4, "another architecture", "--out")
    assert contents(run / "checkpoints") == before


# Outputs that cannot be written


def test_outputs_below_a_file_are_refused(
    beit: Callable, request: pytest.FixtureRequest, labelled_folder: Path, picture: Callable, tmp_path: Path
) -> None:
    image = picture("a.png")
    run = request.getfixturevalue
    (tmp_path / "file").write_text("here already")
    below = tmp_path / "file" / "sub"
    before = contents(tmp_path)
    tokens = ["tokenize", image, "--tokenizer", run("tokenizer_run")]
    lines = [
        [*PRETRAIN, labelled_folder, "--tokenizer", run("tokenizer_run"), "--steps", 2, "--out", below],
        ["train-tokenizer", labelled_folder, "--recipe", "tiny", "--steps", 2, "--out", below],
        [*FINETUNE, labelled_folder, "--out", below],
        [*tokens, "-o", below / "tokens.jsonl"],
        [*tokens, "-o", below / "tokens.npz"],
        [*tokens, "--reconstruct", below],
        ["mask-preview", image, "-o", below / "mask.png"],
        ["mask-preview", labelled_folder, "-o", below],
        ["attn-map", image, "--model", run("pretrained_run"), "-o", below / "map.png"],
    ]
    for argv in lines:
        ended = beit(*argv)
        assert_refused(ended, 4, "file")
        assert contents(tmp_path) == before


def test_pictures_never_replace_the_images_they_are_made_of(
    beit: Callable, tokenizer_run: Path, pretrained_run: Path, picture: Callable, tmp_path: Path
) -> None:
    first, second = picture("data/a.png", seed=1), picture("data/b.png", seed=2)
    before = contents(tmp_path)
    for argv in (
        ["mask-preview", first, "-o", first],
        ["mask-preview", first.parent, "-o", first.parent],
        ["mask-preview", first, "-o", first.parent],
        ["tokenize", first, "--tokenizer", tokenizer_run, "--reconstruct", first.parent],
        ["tokenize", first.parent, "--tokenizer", tokenizer_run, "--reconstruct", first.parent],
        ["attn-map", first, "--model", pretrained_run, "-o", first],
        ["attn-map", first, second, "--model", pretrained_run, "-o", first.parent],
    ):
        ended = beit(*argv)
        after = contents(tmp_path)
        assert {name: after.get(name) for name in before} == before, argv
        assert_refused(ended, 2, "would overwrite")


# Checkpoints that are damaged or something else


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGES = {
    "byte-flipped": lambda folder: flip(folder / "model.safetensors"),
    "trainer-flipped": lambda folder: flip(folder / "trainer.safetensors"),
    "truncated": lambda folder: cut(folder / "model.safetensors"),
    "config-truncated": lambda folder: cut(folder / "config.json"),
    "weights-removed": lambda folder: (folder / "model.safetensors").unlink(),
    "config-removed": lambda folder: (folder / "config.json").unlink(),
    "sums-removed": lambda folder: (folder / "SHA256SUMS").unlink(),
    "sums-empty": lambda folder: (folder / "SHA256SUMS").write_text(""),
    "sums-garbled": lambda folder: (folder / "SHA256SUMS").write_bytes(b"\xff\xfe\x00 nonsense\n"),
    "all-removed": lambda folder: [file.unlink() for file in folder.iterdir()],
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_resume_falls_back_from_a_damaged_checkpoint_and_says_so(
    beit: Callable, pretrained_run: Path, tmp_path: Path, damage: str
) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    DAMAGES[damage](run / "checkpoints" / NEWEST)
    ended = beit("pretrain", "--out", run, "--resume", "--json")
    assert ended.code == 0
    assert f"warning: Damaged checkpoint passed over: {NEWEST}" in ended.err
    assert "going on from step 2" in ended.err
    assert ended.lines[0]["step"] == 4
    first, second = (path / "checkpoints" / NEWEST / "model.safetensors" for path in (run, pretrained_run))
    assert first.read_bytes() == second.read_bytes()
    assert "Damaged" not in beit("pretrain", "--out", run, "--resume").err


USES = {
    "predict": ("finetuned_run", lambda run, image: ["predict", run, image]),
    "eval": ("finetuned_run", lambda run, image: ["eval", run, image.parent.parent]),
    "attn-map": ("pretrained_run", lambda run, image: ["attn-map", image, "--model", run]),
    "mask-preview": ("pretrained_run", lambda run, image: ["mask-preview", image, "--model", run]),
    "tokenize": ("tokenizer_run", lambda run, image: ["tokenize", image, "--tokenizer", run]),
    "finetune": ("pretrained_run", lambda run, image: [*FINETUNE, image.parent.parent, "--init", run]),
    "pretrain": (
        "tokenizer_run",
        lambda run, image: [*PRETRAIN, image.parent.parent, "--tokenizer", run, "--steps", 1],
    ),
}


@pytest.mark.parametrize("use", list(USES))
def test_use_of_a_run_falls_back_from_a_damaged_checkpoint_and_says_so(
    beit: Callable, request: pytest.FixtureRequest, labelled_folder: Path, tmp_path: Path, use: str
) -> None:
    fixture, argv = USES[use]
    run = shutil.copytree(request.getfixturevalue(fixture), tmp_path / "run")
    line = [str(word) for word in argv(run, labelled_folder / "red" / "01.png")]
    out = ["--out", tmp_path / "made"] if use in ("finetune", "pretrain") else []
    DAMAGES["byte-flipped"](run / "checkpoints" / NEWEST)
    ended = beit(*line, *out)
    assert ended.code == 0
    assert ended.err.count(f"warning: Damaged checkpoint passed over: {NEWEST}") == 1
    DAMAGES["truncated"](run / "checkpoints" / BEFORE)
    out = ["--out", tmp_path / "made-again"] if out else []
    assert_refused(beit(*line, *out), 4, "Every checkpoint", NEWEST, BEFORE, "backup")
    assert not (tmp_path / "made-again").exists()


def test_resume_is_refused_where_no_checkpoint_is_whole(beit: Callable, pretrained_run: Path, tmp_path: Path) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    for name in (NEWEST, BEFORE):
        flip(run / "checkpoints" / name / "model.safetensors")
    before = contents(run / "checkpoints")
    assert_refused(beit("pretrain", "--out", run, "--resume"), 4, "Every checkpoint", NEWEST, BEFORE)
    assert contents(run / "checkpoints") == before


def test_checkpoint_named_itself_is_refused_when_damaged(
    beit: Callable, finetuned_run: Path, picture: Callable, tmp_path: Path
) -> None:
    run = shutil.copytree(finetuned_run, tmp_path / "run")
    flip(run / "checkpoints" / NEWEST / "model.safetensors")
    ended = beit("predict", run / "checkpoints" / NEWEST, picture("x.png"))
    assert_refused(ended, 4, "is damaged: model.safetensors does not match its SHA-256")


def test_tokenizer_that_is_something_else_is_refused(
    beit: Callable, finetuned_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    for argv in (
        ["tokenize", labelled_folder, "--tokenizer", finetuned_run],
        [*PRETRAIN, labelled_folder, "--tokenizer", finetuned_run, "--steps", 2, "--out", tmp_path / "run"],
    ):
        assert_refused(beit(*argv), 4, "is a classifier, not a tokenizer", "beit train-tokenizer")
    assert not (tmp_path / "run").exists()


def test_model_that_is_something_else_is_refused(
    beit: Callable,
    tokenizer_run: Path,
    pretrained_run: Path,
    finetuned_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text").write_text("no model")
    way_out = f"`beit finetune DATA --recipe tiny --init {pretrained_run}` (or add --task detect or --task segment)"
    assert_refused(
        beit("predict", pretrained_run, labelled_folder),
        4,
        "is a pretrained model, not finetuned yet: it knows no classes.",
        way_out,
    )
    assert_refused(beit("eval", tokenizer_run, labelled_folder), 4, "is a tokenizer", "beit finetune")
    assert_refused(beit("attn-map", labelled_folder, "--model", tokenizer_run), 4, "is a tokenizer", "beit pretrain")
    assert_refused(beit("mask-preview", labelled_folder, "--model", finetuned_run), 4, "is a classifier")
    assert_refused(beit("predict", tmp_path / "empty", labelled_folder), 4, "holds no checkpoint")
    assert_refused(beit("predict", tmp_path / "text", labelled_folder), 4, "text", "no model")
    near = str(pretrained_run)[:-1]
    assert_refused(beit("predict", near, labelled_folder), 4, "no model", f"Did you mean '{pretrained_run}'?")
    line = [*FINETUNE, labelled_folder, "--init", tokenizer_run, "--out", tmp_path / "run"]
    assert_refused(beit(*line), 4, "is a tokenizer")
    assert not (tmp_path / "run").exists()
