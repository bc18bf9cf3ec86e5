"""mask-preview, through the command line: documents, the masks of training, pictures, and the metrics of --stats."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from beitcli.cli.app import main
from beitcli.config.mask_preview import MaskPreviewConfig
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.loading.batch_datasets import StreamPart
from beitcli.data.loading.batches import training_batches
from beitcli.data.sources.open_data import open_data
from beitcli.engine.events import Drawn, Event, Note
from beitcli.engine.mask_preview import mask_preview
from beitcli.engine.mim.task import transform_and_masking
from beitcli.engine.trainer.data import hold_out, open_images
from beitcli.masking import make_masking, num_masked_from
from beitcli.tokenizers.open import open_tokenizer


def masks(lines: list[dict]) -> list[list[list[int]]]:
    return [line["mask"] for line in lines]


# Documents


def test_mask_preview_documents_are_as_the_contract_says(beit: Callable, picture: Callable) -> None:
    paths = [str(picture("b.png")), str(picture("a.jpg"))]
    ended = beit("mask-preview", *paths)
    assert ended.code == 0
    assert [document["path"] for document in ended.lines] == paths
    for document in ended.lines:
        assert list(document) == ["path", "grid", "num_masked", "mask", "output"]
        assert (document["grid"], document["num_masked"], document["output"]) == ([14, 14], 75, None)
        mask = np.array(document["mask"])
        assert mask.shape == (14, 14)
        assert set(mask.ravel()) == {0, 1}
        assert mask.sum() == 75
    assert document["mask"] != ended.lines[0]["mask"]


@pytest.mark.parametrize(
    ("flags", "grid", "count"),
    [
        (["--num-masked", 75], [14, 14], 75),
        (["--num-masked", 196], [14, 14], 196),
        (["--ratio", 0.5], [14, 14], 98),
        (["--grid", "8,8", "--min-block", 4, "--num-masked", 25], [8, 8], 25),
        (["--grid", "6,20", "--masking", "random", "--num-masked", 1], [6, 20], 1),
        (["--grid", "3x5", "--masking", "random", "--ratio", 1], [3, 5], 15),
    ],
    ids=str,
)
def test_mask_preview_hides_exactly_what_is_asked(
    beit: Callable, picture: Callable, tmp_path: Path, flags: list, grid: list[int], count: int
) -> None:
    (document,) = beit("mask-preview", picture("a.png"), *flags, "-o", tmp_path / "out.png").lines
    assert (document["grid"], document["num_masked"]) == (grid, count)
    assert np.array(document["mask"]).shape == tuple(grid)
    assert np.array(document["mask"]).sum() == count
    with Image.open(tmp_path / "out.png") as image:
        image.load()


def test_mask_preview_of_a_recipe_draws_its_grid_and_masks(beit: Callable, picture: Callable) -> None:
    photo = str(picture("photo.png"))
    for recipe, grid, hidden in (("small", [8, 8], 25), ("base", [14, 14], 75)):
        (document,) = beit("mask-preview", photo, "--recipe", recipe).lines
        assert (document["grid"], document["num_masked"]) == (grid, hidden)
    (other,) = beit("mask-preview", photo, "--recipe", "base", "--grid", "8,8").lines
    assert other["num_masked"] == 26  # the share, as 75 is of the recipe's own grid
    by_hand = beit("mask-preview", photo, "--grid", "8,8", "--num-masked", 25, "--min-block", 4)
    assert masks(by_hand.lines) == masks(beit("mask-preview", photo, "--recipe", "small").lines)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--recipe", "smal"], "Did you mean 'small'?"),
        (["--recipe", "ablation-no-mask"], "hides nothing"),
    ],
)
def test_mask_preview_refuses_a_recipe_without_masks(
    beit: Callable, picture: Callable, flags: list[str], said: str
) -> None:
    ended = beit("mask-preview", str(picture("photo.png")), *flags)
    assert ended.code == 2
    assert said in ended.err


def test_mask_preview_takes_masks_of_a_recipe_or_of_a_model(
    beit: Callable, picture: Callable, pretrained_run: Path
) -> None:
    ended = beit("mask-preview", str(picture("photo.png")), "--recipe", "tiny", "--model", pretrained_run)
    assert ended.code == 2
    assert "--recipe and --model" in ended.err


def test_mask_preview_masks_follow_seed_epoch_and_place(beit: Callable, labelled_folder: Path) -> None:
    first = beit("mask-preview", labelled_folder, "--ratio", 0.4).lines
    assert beit("mask-preview", labelled_folder, "--ratio", 0.4).lines == first
    for other in (["--seed", 1], ["--epoch", 1], ["--masking", "random"], ["--min-block", 40]):
        changed = masks(beit("mask-preview", labelled_folder, "--ratio", 0.4, *other).lines)
        assert all(one != two for one, two in zip(changed, masks(first), strict=True))
    part = beit("mask-preview", labelled_folder, "--ratio", 0.4, "--limit", 1).lines[0]
    assert part["mask"] == next(line["mask"] for line in first if line["path"] == part["path"])


def test_mask_preview_masks_of_single_photographs_follow_their_content(
    beit: Callable, picture: Callable, tmp_path: Path
) -> None:
    one, other = picture("a.png", seed=1), picture("b.png", seed=2)
    copy = tmp_path / "copy of a.png"
    copy.write_bytes(one.read_bytes())
    mask, different, same = (masks(beit("mask-preview", each).lines) for each in (one, other, copy))
    assert mask == same
    assert mask != different
    assert masks(beit("mask-preview", one, "--seed", 1).lines) != mask
    assert masks(beit("mask-preview", one, "--epoch", 1).lines) != mask


@pytest.mark.parametrize(
    "flags",
    [
        ["--num-masked", 5, "--ratio", 0.3],
        ["--ratio", 0],
        ["--ratio", 1.5],
        ["--grid", "14,0"],
        ["--grid", "14,14,14"],
        ["--grid", "a,b"],
        ["--min-block", 0],
        ["--masking", "blocks"],
        ["--epoch", -1],
        ["--stats", 0],
    ],
    ids=str,
)
def test_mask_preview_refuses_settings_that_cannot_be_met(beit: Callable, picture: Callable, flags: list) -> None:
    ended = beit("mask-preview", picture("a.png"), *flags)
    assert (ended.code, ended.out) == (2, "")
    assert len(ended.err.splitlines()) == 2


# The masks of training


@pytest.mark.parametrize(("seed", "limit"), [(0, None), (7, None), (7, 22)])
def test_mask_preview_shows_the_masks_that_pretraining_hides(
    beit: Callable, labelled_folder: Path, tokenizer_run: Path, seed: int, limit: int | None
) -> None:
    """The loader's batches of two epochs, by image, against the documents of those epochs."""
    flags = {"data": [str(labelled_folder)], "recipe": "tiny", "image_size": 64, "num_masked": 25, "seed": seed}
    flags |= {"tokenizer": str(tokenizer_run)} | ({"limit": limit} if limit else {})
    config = resolve(PretrainConfig, flags).config
    source = open_images(config, labelled=False, size=64, on_event=lambda event: None)
    training = hold_out(source, config.holdout, config.seed).training
    assert len(training) < len(source)
    masking = make_masking(config.masking, config.architecture.grid, 25, config.min_block)
    transform, keyed = transform_and_masking(config, open_tokenizer(str(tokenizer_run)), masking)
    part = StreamPart(seed=seed, batch_size=len(training), images_seen=0, steps=2)
    batches = training_batches(training, transform, part, workers=0, masking=keyed)
    argv = ["mask-preview", labelled_folder, "--grid", "8,8", "--num-masked", 25, "--min-block", 4, "--seed", seed]
    argv += ["--limit", limit] if limit else []
    for epoch, batch in enumerate(batches):
        shown = {line["path"]: line["mask"] for line in beit(*argv, "--epoch", epoch).lines}
        assert len(shown) == limit or 24
        trained = {
            training.path(index): mask.reshape(8, 8).int().tolist()
            for index, mask in zip(batch.indices, batch.tensors["mask"], strict=True)
        }
        assert len(trained) == len(training)
        assert trained == {path: shown[path] for path in trained}


def test_mask_preview_of_a_run_takes_its_masking(beit: Callable, pretrained_run: Path, labelled_folder: Path) -> None:
    own = beit("mask-preview", labelled_folder, "--model", pretrained_run)
    flags = ["--grid", "4,4", "--num-masked", 6, "--min-block", 4]
    assert own.code == 0
    assert masks(own.lines) == masks(beit("mask-preview", labelled_folder, *flags).lines)
    fewer = beit("mask-preview", labelled_folder, "--model", pretrained_run, "--num-masked", 3).lines
    assert {line["num_masked"] for line in fewer} == {3}
    ended = beit("mask-preview", labelled_folder, "--model", pretrained_run, "--grid", "14,14")
    assert ended.code == 2
    assert "4,4" in ended.err


# Pictures


def test_mask_preview_writes_a_picture_to_stdout(
    capsysbinary: pytest.CaptureFixture[bytes], picture: Callable, tmp_path: Path
) -> None:
    image = str(picture("a.png"))
    assert main(["mask-preview", image, "-o", "-"]) == 0
    out, err = capsysbinary.readouterr()
    assert (out[:8], err) == (b"\x89PNG\r\n\x1a\n", b"")
    assert main(["mask-preview", image, "-o", str(tmp_path / "out.png")]) == 0
    with Image.open(io.BytesIO(out)) as piped, Image.open(tmp_path / "out.png") as written:
        assert (piped.size, piped.tobytes()) == (written.size, written.tobytes())
    assert json.loads(capsysbinary.readouterr().out)["output"] == str(tmp_path / "out.png")


def test_mask_preview_writes_only_one_picture_to_stdout(beit: Callable, labelled_folder: Path) -> None:
    ended = beit("mask-preview", labelled_folder, "-o", "-")
    assert (ended.code, ended.out) == (2, "")
    assert "24 images" in ended.err


def test_mask_preview_keeps_documents_out_of_the_stream_of_a_picture(
    capfdbinary: pytest.CaptureFixture[bytes], tmp_path: Path
) -> None:
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert main(["mask-preview", str(tmp_path / "bad.jpg"), "-o", "-"]) == 3
    out, err = capfdbinary.readouterr()
    assert out == b""
    assert b"bad.jpg: " in err
    assert main(["mask-preview", "--stats", "3", "-o", "/dev/stdout"]) == 0
    assert capfdbinary.readouterr().out.endswith(b"IEND\xaeB`\x82")


def test_mask_preview_of_several_writes_a_folder(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    lines = beit("mask-preview", labelled_folder, "-o", tmp_path / "new" / "masks").lines
    assert sorted(line["output"] for line in lines) == sorted(map(str, (tmp_path / "new" / "masks").iterdir()))
    assert len({line["output"] for line in lines}) == 24


@pytest.mark.parametrize(
    ("suffix", "format"), [(".jpg", "JPEG"), (".jpeg", "JPEG"), (".webp", "WEBP"), (".PNG", "PNG")]
)
def test_mask_preview_writes_the_format_of_the_name(
    beit: Callable, picture: Callable, tmp_path: Path, suffix: str, format: str
) -> None:
    assert beit("mask-preview", picture("a.png"), "-o", tmp_path / f"out{suffix}").code == 0
    with Image.open(tmp_path / f"out{suffix}") as image:
        assert image.format == format


def test_mask_preview_of_several_in_one_file_is_a_sheet(beit: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sheet.jpg"
    lines = beit("mask-preview", labelled_folder, "--limit", 6, "-o", out).lines
    assert {line["output"] for line in lines} == {str(out)}
    assert len(lines) == 6
    with Image.open(out) as image:
        assert image.width == 4 * 224 + 5 * 16  # two images a row, two panels each
        assert image.height > 3 * 224
    assert beit("mask-preview", labelled_folder, "-o", out).code == 2  # exists
    ended = beit("mask-preview", "sample", "--limit", 101, "-o", tmp_path / "vast.png")
    assert (ended.code, ended.out) == (2, "")
    assert "101 images" in ended.err


def test_mask_preview_says_what_is_cropped(beit: Callable, picture: Callable) -> None:
    seen: list[Drawn] = []
    for name, size in (("wide.png", (100, 80)), ("square.png", (64, 64))):
        config = resolve(MaskPreviewConfig, {"inputs": [str(picture(name, size=size))], "preview": True}).config
        list(mask_preview(config, lambda event: seen.append(event) if isinstance(event, Drawn) else None))
    assert [event.panels[0].notes for event in seen] == [("the middle 80 x 80 of 100 x 80 pixels",), ()]
    assert seen[0].panels[0].title == "wide.png"


def test_preview_goes_to_stderr_and_without_a_terminal_is_a_note(beit: Callable, picture: Callable) -> None:
    ended = beit("mask-preview", picture("a.png"), "--preview")
    assert ended.code == 0
    assert len(ended.lines) == 1
    assert ended.err.startswith("--preview draws nothing")
    assert len(ended.err.splitlines()) == 1


def test_mask_preview_with_a_model_draws_four_panels_and_tells_the_accuracy(
    beit: Callable, pretrained_run: Path, labelled_folder: Path
) -> None:
    flags = {"inputs": [str(labelled_folder)], "limit": 2, "model": str(pretrained_run), "preview": True}
    seen: list[Drawn] = []
    previews = mask_preview(
        resolve(MaskPreviewConfig, flags).config,
        lambda event: seen.append(event) if isinstance(event, Drawn) else None,
    )
    for preview in previews:
        accuracy = preview.document["masked_accuracy"]
        panels = seen[-1].panels
        assert len(panels) == 4
        assert panels[3].notes == (f"{round(6 * accuracy)} of 6 right ({accuracy:.0%})",)
        assert seen[-1].legend[0] == "disc: right, cross: wrong"


def test_images_that_a_run_learned_from_are_said_to_be_so(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    others = tmp_path / "others"
    shutil.copytree(labelled_folder, others)
    for data, told in ((labelled_folder, True), (others, False)):
        flags = {"inputs": [str(data)], "limit": 1, "model": str(pretrained_run), "preview": True}
        events: list[Event] = []
        list(mask_preview(resolve(MaskPreviewConfig, flags).config, events.append))
        (drawn,) = (event for event in events if isinstance(event, Drawn))
        assert ("images of the model's training data" in drawn.legend) is told
        notes = [event.message for event in events if isinstance(event, Note)]
        said = f"'{pretrained_run}' learned from DATA of this name: its training images"
        said += " (a twentieth at most was held out)."
        assert (said in notes) is told


def test_stats_are_drawn(beit: Callable, tmp_path: Path) -> None:
    out = tmp_path / "stats.png"
    (document,) = beit("mask-preview", "--stats", 20, "-o", out).lines
    assert document["output"] == str(out)
    with Image.open(out) as image:
        assert image.width > 1000
    assert beit("mask-preview", "--stats", 20, "-o", out).code == 2
    assert beit("mask-preview", "--stats", 20, "-o", tmp_path / "stats.txt").code == 2


def test_previews_of_a_run_are_animated_in_the_order_of_their_steps(beit: Callable, tmp_path: Path) -> None:
    folder = tmp_path / "run" / "previews"
    folder.mkdir(parents=True)
    for number, step in enumerate((1000, 5, 40)):
        Image.new("RGB", (320, 160), (80 * number, 90, 100)).save(folder / f"step-{step}.png")
    (folder / "notes.txt").write_text("no preview")
    for suffix, format in ((".gif", "GIF"), (".webp", "WEBP"), (".png", "PNG")):
        out = tmp_path / f"learning{suffix}"
        (document,) = beit("mask-preview", "--animate", tmp_path / "run", "-o", out).lines
        assert document["steps"] == [5, 40, 1000]
        with Image.open(out) as image:
            assert (image.format, image.n_frames) == (format, 3)
            reds = []
            for frame in range(3):
                image.seek(frame)
                reds.append(image.convert("RGB").getpixel((160, image.height - 20))[0])
        assert reds == pytest.approx([80, 160, 0], abs=6)
    noise = Image.effect_noise((320, 160), 60).convert("RGB")
    for number, step in enumerate((2000, 3000, 4000)):  # a frame that is mostly as the one before costs little
        noise.paste((0, 0, 50 * number), (300, 0, 320, 160))
        noise.save(folder / f"step-{step}.png")
    one = (tmp_path / "learning.gif").stat().st_size
    assert beit("mask-preview", "--animate", tmp_path / "run", "-o", tmp_path / "more.gif").code == 0
    alone = io.BytesIO()
    noise.quantize(255).save(alone, format="GIF")
    assert (tmp_path / "more.gif").stat().st_size < one + 1.5 * len(alone.getvalue())
    assert beit("mask-preview", "--animate", tmp_path / "run", "-o", tmp_path / "a.mp4").code == 2
    assert beit("mask-preview", "--animate", tmp_path / "run").code == 2
    assert beit("mask-preview", "--animate", tmp_path, "-o", tmp_path / "a.gif").code == 3


def test_mask_preview_with_a_model_adds_the_reconstruction(
    beit: Callable, pretrained_run: Path, picture: Callable, tmp_path: Path
) -> None:
    image = picture("a.png")
    for name, model in (("plain", []), ("rebuilt", ["--model", pretrained_run])):
        flags = ["--grid", "4,4", "--num-masked", 6, "--min-block", 4]
        assert beit("mask-preview", image, *flags, *model, "-o", tmp_path / f"{name}.png").code == 0
    with Image.open(tmp_path / "plain.png") as plain, Image.open(tmp_path / "rebuilt.png") as rebuilt:
        assert rebuilt.height >= plain.height
        assert rebuilt.width > plain.width
        added = np.asarray(rebuilt.convert("RGB"))[:, plain.width :]
        assert added.std() > 0


def test_mask_preview_rebuilds_a_batch_as_it_does_each_alone(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    """Five at once are the pictures of one at a time, up to a token or two of another last bit."""
    argv = ["mask-preview", labelled_folder, "--limit", 7, "--model", pretrained_run]
    lines = {count: beit(*argv, "--batch-size", count, "-o", tmp_path / str(count)).lines for count in (1, 5)}
    same = {"output": "", "masked_accuracy": 0}
    assert [line | same for line in lines[1]] == [line | same for line in lines[5]]
    for one, five in zip(lines[1], lines[5], strict=True):
        with Image.open(one["output"]) as alone, Image.open(five["output"]) as together:
            same = np.asarray(alone) == np.asarray(together)
        assert same.mean() > 0.98
    assert beit(*argv, "--batch-size", 0).code == 2


def test_mask_preview_does_the_others_where_one_is_bad(beit: Callable, picture: Callable, tmp_path: Path) -> None:
    good = picture("data/b.png")
    (good.parent / "a.png").write_bytes(b"")
    ended = beit("mask-preview", good.parent, "-o", tmp_path / "out")
    assert ended.code == 3
    assert [set(line) for line in ended.lines] == [
        {"path", "error"},
        {"path", "grid", "num_masked", "mask", "output"},
    ]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    source = open_data([str(good.parent)])
    assert len(source) == 2


# Statistics


def test_stats_document_is_as_the_contract_says(beit: Callable) -> None:
    ended = beit("mask-preview", "--stats", 50, "--num-masked", 75)
    (document,) = ended.lines
    assert ended.code == 0
    assert {"masks", "grid", "num_masked", "position_probability", "blocks"} <= set(document)
    assert sum(document["histograms"]["blocks"]) == 50
    counts = np.array(document["histograms"]["blocks"])
    assert (counts * np.arange(len(counts))).sum() / 50 == pytest.approx(document["blocks"]["mean"])
    assert sum(document["histograms"]["block_area"]) == (counts * np.arange(len(counts))).sum()
    assert (document["masks"], document["grid"]) == (50, [14, 14])
    assert document["num_masked"] == {"mean": 75, "min": 75, "max": 75}
    shares = np.array(document["position_probability"])
    assert shares.shape == (14, 14)
    assert shares.sum() == pytest.approx(75, abs=1e-2)
    assert shares.min() >= 0
    assert shares.max() <= 1
    assert document["blocks"]


def test_stats_describe_the_masks_that_are_shown(beit: Callable, labelled_folder: Path) -> None:
    flags = ["--seed", 3, "--epoch", 2, "--grid", "6,7", "--num-masked", 12, "--min-block", 4]
    shown = np.array(masks(beit("mask-preview", labelled_folder, *flags).lines))
    (document,) = beit("mask-preview", "--stats", 24, *flags).lines
    np.testing.assert_allclose(document["position_probability"], shown.mean(axis=0), atol=1e-4)


def test_stats_of_a_run_use_its_grid_and_count(beit: Callable, pretrained_run: Path) -> None:
    (document,) = beit("mask-preview", "--stats", 10, "--model", pretrained_run).lines
    assert document["grid"] == [4, 4]
    assert document["num_masked"]["mean"] == 6


@pytest.mark.parametrize(
    ("flags", "grid", "count"),
    [
        ([], [14, 14], 75),
        (["--masking", "random"], [14, 14], 75),
        (["--grid", "14,14"], [14, 14], 75),
        (["--ratio", 0.4], [14, 14], 78),
        (["--grid", "8,8"], [8, 8], 26),
    ],
    ids=str,
)
def test_without_a_model_it_hides_what_pretrain_does(
    beit: Callable, picture: Callable, flags: list[object], grid: list[int], count: int
) -> None:
    (document,) = beit("mask-preview", picture("a.png"), *flags).lines
    assert (document["grid"], document["num_masked"]) == (grid, count)
    if not flags:
        plain = resolve(PretrainConfig, {"data": ("sample",)}).config
        assert num_masked_from(plain.ratio, plain.num_masked, plain.architecture.grid) == count


def test_lines_on_a_terminal_count_right_guesses_and_name_a_sheet_once(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["mask-preview", labelled_folder / "red", "--limit", 2, "--model", pretrained_run, "--workers", 0]
    shown = beit(*argv, "-o", tmp_path / "json.png").lines
    monkeypatch.setattr("beitcli.cli.console.CommandConsole.wants_json", False)
    told = beit(*argv, "-o", tmp_path / "sheet.png").out.splitlines()
    assert told.count(str(tmp_path / "sheet.png")) == 1
    for document in shown:
        right = round(document["masked_accuracy"] * document["num_masked"])
        said = f"{document['num_masked']} of 16 patches hidden, {right} of their tokens guessed right"
        assert [line for line in told if line.startswith(f"{document['path']}  {said} (")]
    assert not [line for line in told if set(line) <= set("█·")]  # the picture has the masks
    undrawn = beit(*argv).out.splitlines()
    assert [line for line in undrawn if line.endswith("hidden; -o PICTURE draws what the model guesses there")]
    assert len([line for line in undrawn if set(line) <= set("█·")]) == 2 * 4
