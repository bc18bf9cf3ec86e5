"""`embed`: features equal those of the probes, in every format, in order, also after a stop; neighbours of an image."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import beitcli
from beitcli.cli.app import main
from beitcli.cli.commands import embed as command
from beitcli.config.resolve import resolve
from beitcli.data.sources.open_data import open_data
from beitcli.data.transforms.base import evaluation_view, normalize
from beitcli.engine import embed as embed_module
from beitcli.engine.embed import embed
from beitcli.engine.events import Progress
from beitcli.engine.io import feature_files
from beitcli.engine.io.feature_files import with_numbers
from beitcli.engine.io.features import safetensors as safetensors_format
from beitcli.engine.io.features.formats import read_features
from beitcli.errors import DataError, UsageError
from beitcli.models.checkpoints.build import open_backbone, preprocessing
from beitcli.models.networks.pooled_features import pooled_features
from tests.cli.test_contract import at_terminal
from tests.helpers.processes import in_processes

FORMATS = [".npy", ".parquet", ".safetensors", ".jsonl"]


def config_of(model: Path, inputs: Path | list[str], **settings: Any) -> beitcli.EmbedConfig:
    named = inputs if isinstance(inputs, list) else [str(inputs)]
    flags = {"model": str(model), "inputs": named, "device": "cpu", "workers": 0, "batch_size": 7} | settings
    return resolve(beitcli.EmbedConfig, flags).config


def by_hand(model: Path, data: Path, layer: int, pool: str, norm: bool = True) -> np.ndarray:
    network, checkpoint = open_backbone(str(model))
    how = preprocessing(checkpoint, network)
    source = open_data([str(data)])
    view = evaluation_view(network.architecture.image_size, how.crop, how.normalization)
    pixels = np.stack([view(source.image(i), 0, i)["images"] for i in range(len(source))])
    images = normalize(torch.from_numpy(pixels), *how.normalization)
    return pooled_features(network, images, [layer], pool, norm)[0].numpy()


def read(path: Path) -> tuple[np.ndarray, list[str], list[str] | None]:
    """Features, paths and labels of a file, each read by its own library."""
    if path.suffix == ".npy":
        about = json.loads(path.with_suffix(".json").read_text())
        return np.load(path), about["paths"], about.get("labels")
    if path.suffix == ".parquet":
        table = pq.read_table(path, partitioning=None)
        labels = table.column("label").to_pylist() if "label" in table.column_names else None
        paths = [os.fsdecode(each) for each in table.column("path").to_pylist()]
        return np.array(table.column("features").to_pylist(), np.float32), paths, labels
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            about = file.metadata()
            labels = json.loads(about["labels"]) if "labels" in about else None
            return file.get_tensor("features"), json.loads(about["paths"]), labels
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines = [each for each in lines if "features" in each]
    labels = [each["label"] for each in lines] if "label" in lines[0] else None
    return np.array([each["features"] for each in lines], np.float32), [each["path"] for each in lines], labels


@pytest.mark.parametrize(
    ("layer", "pool", "norm"), [(-1, "mean", True), (2, "cls", True), (3, "cls+mean", False), (-4, "none", True)]
)
def test_embed_yields_the_features_of_the_probes_in_order(
    pretrained_run: Path, labelled_folder: Path, layer: int, pool: str, norm: bool
) -> None:
    config = config_of(pretrained_run, labelled_folder, layer=layer, pool=pool, feature_norm=norm)
    documents = list(embed(config))
    expected = by_hand(pretrained_run, labelled_folder, layer % 5, pool.replace("cls", "class"), norm)
    assert np.allclose([each["features"] for each in documents], expected, atol=1e-5)
    source = open_data([str(labelled_folder)])
    assert [each["path"] for each in documents] == [source.path(i) for i in range(len(source))]
    assert [each["label"] for each in documents] == [name for name in ("blue", "green", "red") for _ in range(8)]


def test_neighbours_in_an_exported_file_vote_as_eval_knn_does(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    split = tmp_path / "split"
    for name in ("blue", "green", "red"):
        for place, part in ((slice(0, 5), "train"), (slice(5, 8), "val")):
            for picture in sorted((labelled_folder / name).iterdir())[place]:
                (split / part / name).mkdir(parents=True, exist_ok=True)
                shutil.copy(picture, split / part / name)
    features, labels = {}, {}
    for part in ("train", "val"):
        file = tmp_path / f"{part}.npy"
        ended = beit("embed", pretrained_run, split, "--split", part, "--layer", 2, "-o", file, "--workers", 0)
        assert (ended.code, ended.out) == (0, "")
        assert f"Made '{file}': {len(np.load(file))} x 128, float32; block 2, mean of the patches." in ended.err
        assert f"Names of the rows: '{file.with_suffix('.json')}'." in ended.err
        features[part], _, labels[part] = read(file)
        features[part] /= np.linalg.norm(features[part], axis=1, keepdims=True)
    nearest = (features["val"] @ features["train"].T).argmax(axis=1)
    top1 = np.mean([labels["train"][row] == label for row, label in zip(nearest, labels["val"], strict=True)])
    told = beit("eval", pretrained_run, split, "--protocol", "knn", "--layer", 2, "--k", 1, "--workers", 0).lines[0]
    assert told["top1"] == pytest.approx(top1)


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_features_are_told_with_the_digits_of_float32(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, pool: str
) -> None:
    folder = labelled_folder / "red"
    arrays = [each["features"] for each in embed(config_of(pretrained_run, folder, pool=pool, batch_size=64))]
    shape = (128,) if pool == "mean" else (16, 128)
    assert {(each.dtype.name, each.shape) for each in arrays} == {("float32", shape)}
    expected = [np.vectorize(lambda number: float(f"{number:.9g}"), otypes=[float])(each).tolist() for each in arrays]
    lines = beit("embed", pretrained_run, folder, "--pool", pool, "--device", "cpu", "--workers", 0, "--json").lines
    assert [each["features"] for each in lines] == expected
    told = list(beitcli.embed(pretrained_run, folder, pool=pool, device="cpu", workers=0, progress=False))
    assert told == lines


@pytest.mark.parametrize("suffix", ["", ".npy", ".parquet", ".safetensors"])
def test_features_that_are_not_told_in_full_stay_an_array(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    sizes, as_numbers = [], feature_files.as_numbers
    monkeypatch.setattr(feature_files, "as_numbers", lambda array: sizes.append(array.size) or as_numbers(array))
    output = {"output": str(tmp_path / f"out{suffix}")} if suffix else {}
    documents = list(embed(config_of(pretrained_run, labelled_folder, **output)))
    assert len(documents) == (0 if suffix else 24)
    lines = [command._said(document) for document in documents]
    assert sizes == [6] * len(documents)  # the numbers of a line
    for line, document in zip(lines, documents, strict=True):
        first = " ".join(f"{number:.3f}" for number in document["features"][:6].tolist())
        assert line == f"128 numbers: {first} ..."


def test_a_line_of_every_patch_tells_their_number_and_the_first(pretrained_run: Path, labelled_folder: Path) -> None:
    document = next(embed(config_of(pretrained_run, labelled_folder, pool="none")))
    first = " ".join(f"{number:.3f}" for number in document["features"][0, :6].tolist())
    assert command._said(document) == f"16 x 128 numbers: {first} ..."
    assert command._said({"path": "a.png", "error": "it is cut off"}) == "error: it is cut off"


def test_weights_are_hashed_only_for_what_states_or_compares_them(
    pretrained_run: Path, labelled_folder: Path, query: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed, digest = [], embed_module.weights_digest
    monkeypatch.setattr(embed_module, "weights_digest", lambda model: hashed.append(model) or digest(model))

    def times(inputs: Path = labelled_folder, **settings: Any) -> int:
        hashed.clear()
        list(embed(config_of(pretrained_run, inputs, **settings)))
        return len(hashed)

    stored = tmp_path / "stored.npy"
    assert times() == 0
    assert times(output=str(tmp_path / "lines.jsonl")) == 0
    assert times(query=str(query)) == 0
    assert times(query=str(query), output=str(tmp_path / "nearest.png")) == 0
    assert times(output=str(stored)) == 1
    assert json.loads(stored.with_suffix(".json").read_text())["features"]["weights"] == digest(hashed[0])
    assert times(stored, query=str(query)) == 1


@pytest.mark.parametrize("pool", ["mean", "none"])
def test_every_format_holds_the_same_features_and_names(pretrained_run: Path, tmp_path: Path, pool: str) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    names = [b"a\nb.png", b"c, 'd'.png", b"\xff.png"]
    for number, name in enumerate(names):
        Image.new("RGB", (40, 36), (80 * number, 90, 200)).save(tmp_path / "one.png")
        shutil.copy(tmp_path / "one.png", os.path.join(os.fsencode(folder), name))
    stdout = list(embed(config_of(pretrained_run, folder, pool=pool)))
    for suffix in FORMATS:
        file = tmp_path / f"out{suffix}"
        assert list(embed(config_of(pretrained_run, folder, pool=pool, output=str(file)))) == []
        features, paths, labels = read(file)
        assert features.dtype == np.float32
        assert np.array_equal(features, np.array([each["features"] for each in stdout], np.float32))
        assert [os.path.basename(os.fsencode(each)) for each in paths] == sorted(names)
        assert paths == [each["path"] for each in stdout]
        assert labels is None
    made = ["out.json", "out.jsonl", "out.npy", "out.parquet", "out.safetensors"]
    assert sorted(path.name for path in tmp_path.glob("out*")) == made


def test_half_precision_halves_the_file(pretrained_run: Path, labelled_folder: Path, tmp_path: Path) -> None:
    whole = by_hand(pretrained_run, labelled_folder, 4, "mean")
    for suffix in (".npy", ".safetensors", ".parquet"):
        file = tmp_path / f"out{suffix}"
        list(embed(config_of(pretrained_run, labelled_folder, dtype="float16", output=str(file))))
        features, _, labels = read(file)
        assert np.allclose(features, whole, atol=2e-3)
        assert (labels or [None])[-1] == "red"
    assert np.load(tmp_path / "out.npy").dtype == np.float16


class Halt(Exception):
    """A stop in the middle of a job."""


def stop_after(images: int) -> Callable[[Any], None]:
    def on_event(event: Any) -> None:
        if isinstance(event, Progress) and event.phase == "embed" and event.done >= images:
            raise Halt

    return on_event


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stopped_job_goes_on_and_equals_one_that_was_not(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    file, other = tmp_path / f"out{suffix}", tmp_path / f"other{suffix}"
    with pytest.raises(Halt):
        list(embed(config_of(pretrained_run, labelled_folder, output=str(file)), stop_after(14)))
    rows = tmp_path / f"out{suffix}.partial"
    if suffix == ".jsonl":
        with file.open("a") as lines:
            lines.write('{"path": "cut of')
    else:
        assert not file.exists()
        rows.write_bytes(rows.read_bytes()[:-3])  # of the last row a part only was written
    with pytest.raises(UsageError, match=r"exists? already"):
        list(embed(config_of(pretrained_run, labelled_folder, output=str(file))))
    said: list[Any] = []
    list(embed(config_of(pretrained_run, labelled_folder, output=str(file), resume=True), said.append))
    held = 14 if suffix == ".jsonl" else 13
    assert f"{held} of 24 images are in the file already" in [getattr(each, "message", "") for each in said]
    list(embed(config_of(pretrained_run, labelled_folder, output=str(other))))
    (features, *names), (whole, *own) = read(file), read(other)
    assert names == own
    assert np.allclose(features, whole, atol=1e-5)
    assert not rows.exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_classes_that_are_no_text_are_stored(
    pretrained_run: Path, picture: Callable, tmp_path: Path, suffix: str
) -> None:
    names = ["caf\udce9", "t"]  # the first in Latin-1
    for name in names:
        picture(f"data/{name}/a.png")
    file = tmp_path / f"out{suffix}"
    list(embed(config_of(pretrained_run, tmp_path / "data", output=str(file))))
    stored = read_features(file)
    assert stored.labels == names
    assert [Path(path).parent.name for path in stored.paths] == names
    list(embed(config_of(pretrained_run, tmp_path / "data", output=str(file), resume=True)))  # is read back


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_finished_file_takes_up_further_images(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"out{suffix}"
    list(embed(config_of(pretrained_run, labelled_folder / "blue", output=str(file))))
    more = [str(labelled_folder / "blue"), str(labelled_folder / "red")]
    list(embed(config_of(pretrained_run, more, output=str(file), resume=True)))
    features, paths, _ = read(file)
    assert features.shape == (16, 128)
    assert [Path(path).parent.name for path in paths] == ["blue"] * 8 + ["red"] * 8
    assert np.allclose(features[8:], by_hand(pretrained_run, labelled_folder / "red", 4, "mean"), atol=1e-5)


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("change", [{"layer": 2}, {"pool": "cls"}, {"pool": "none"}, {}], ids=str)
def test_resume_refuses_a_file_of_other_features_and_leaves_it(
    pretrained_run: Path,
    finetuned_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    suffix: str,
    change: dict[str, Any],
) -> None:
    file = tmp_path / f"out{suffix}"
    list(embed(config_of(pretrained_run, labelled_folder / "blue", output=str(file))))
    before = file.read_bytes()
    model = pretrained_run if change else finetuned_run
    with pytest.raises(UsageError, match="holds"):
        list(embed(config_of(model, labelled_folder / "blue", output=str(file), resume=True, **change)))
    assert file.read_bytes() == before
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.parametrize("change", [{"layer": 2}, {"pool": "none"}, {"dtype": "float16"}], ids=str)
def test_resume_refuses_parts_of_other_features_and_leaves_them(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, change: dict[str, Any]
) -> None:
    file = tmp_path / "out.npy"
    with pytest.raises(Halt):
        list(embed(config_of(pretrained_run, labelled_folder, output=str(file)), stop_after(7)))
    parts = {path: path.read_bytes() for path in tmp_path.iterdir()}
    assert [len(content) for content in parts.values()] != [0, 0]
    with pytest.raises(UsageError, match="another kind"):
        list(embed(config_of(pretrained_run, labelled_folder, output=str(file), resume=True, **change)))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == parts


@pytest.mark.parametrize("suffix", FORMATS)
def test_unreadable_images_have_no_row_and_end_with_3(
    beit: Callable, pretrained_run: Path, picture: Callable, tmp_path: Path, suffix: str
) -> None:
    good, bad = picture("in/a.png"), tmp_path / "in" / "b.png"
    bad.write_bytes(b"no image")
    file = tmp_path / f"out{suffix}"
    ended = beit("embed", pretrained_run, tmp_path / "in", "-o", file, "--workers", 0)
    assert ended.code == 3
    assert "1 of 2 images cannot be read." in ended.err
    assert read(file)[1] == [str(good)]
    if suffix == ".jsonl":
        told = json.loads(file.read_text().splitlines()[1])
        assert told["path"] == str(bad)
        assert told["error"].startswith("not an image")


def test_overwrite_replaces_at_the_end_and_a_failed_job_leaves_the_old_file(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    for suffix in FORMATS:
        file = tmp_path / f"out{suffix}"
        list(embed(config_of(pretrained_run, labelled_folder / "blue", output=str(file))))
        before = file.read_bytes()
        changed = config_of(pretrained_run, labelled_folder / "red", output=str(file), overwrite=True)
        with pytest.raises(Halt):
            list(embed(changed, stop_after(7)))
        assert file.read_bytes() == before
        list(embed(changed))
        assert Path(read(file)[1][0]).parent.name == "red"


# Neighbours


@pytest.fixture
def query(labelled_folder: Path) -> Path:
    return labelled_folder / "green" / "03.png"


def nearest_by_hand(run: Path, folder: Path, query: Path, count: int) -> list[tuple[str, float]]:
    source = open_data([str(folder)])
    features = by_hand(run, folder, 4, "mean").astype(np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    paths = [source.path(i) for i in range(len(source))]
    similarities = features @ features[paths.index(str(query))]
    pairs = sorted(zip(paths, similarities, strict=True), key=lambda pair: -pair[1])
    return [pair for pair in pairs if pair[0] != str(query)][:count]


def test_query_names_the_nearest_images_and_not_itself(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, query: Path
) -> None:
    line = ["embed", pretrained_run, labelled_folder, "--query", query, "--k", 5, "--workers", 0]
    (told,) = beit(*line).lines
    expected = nearest_by_hand(pretrained_run, labelled_folder, query, 5)
    assert (told["query"], told["output"]) == (str(query), None)
    assert [each["path"] for each in told["neighbours"]] == [path for path, _ in expected]
    assert [each["similarity"] for each in told["neighbours"]] == pytest.approx([s for _, s in expected], abs=2e-6)


@pytest.mark.parametrize("suffix", FORMATS)
def test_query_of_a_file_of_features_finds_the_same(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, query: Path, tmp_path: Path, suffix: str
) -> None:
    file = tmp_path / f"features{suffix}"
    list(embed(config_of(pretrained_run, labelled_folder, output=str(file))))
    whole, stored = (
        beit("embed", pretrained_run, each, "--query", query, "--k", 30, "--workers", 0).lines[0]["neighbours"]
        for each in (labelled_folder, file)
    )
    assert len(whole) == 23
    assert [each["path"] for each in stored] == [each["path"] for each in whole]
    assert [each["similarity"] for each in stored] == pytest.approx([e["similarity"] for e in whole], abs=2e-6)
    ended = beit("embed", pretrained_run, file, "--query", query, "--pool", "cls+mean", "--workers", 0)
    assert ended.code == 2
    assert "holds features of" in ended.err


@pytest.mark.parametrize(("suffix", "format"), [(".png", "PNG"), (".jpg", "JPEG")])
def test_contact_sheet_shows_the_query_and_its_neighbours(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, query: Path, tmp_path: Path, suffix: str, format: str
) -> None:
    sheet = tmp_path / f"sheet{suffix}"
    line = ["embed", pretrained_run, labelled_folder, "--query", query, "--k", 3, "-o", sheet, "--workers", 0]
    (told,) = beit(*line).lines
    assert told["output"] == str(sheet)
    with Image.open(sheet) as opened:
        assert opened.format == format
        pixels = np.asarray(opened.convert("RGB")).astype(int)
    assert pixels.shape[1] == 2 * 224 + 3 * 16
    cells = [(16 + 112, 16 + 112), (16 + 112, 16 + 224 + 16 + 112)]
    shown = [pixels[row - 60 : row + 60, column - 60 : column + 60].mean(axis=(0, 1)) for row, column in cells]
    for colour, path in zip(shown, (query, told["neighbours"][0]["path"]), strict=True):
        with Image.open(path) as original:
            assert np.abs(colour - np.asarray(original.convert("RGB")).mean(axis=(0, 1))).max() < 25
    assert beit(*line).code == 2  # it exists


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "out.png"], "A picture shows the neighbours of an image: give --query IMAGE."),
        (["-o", "out.csv"], "Give a name that ends in .npy, .parquet, .safetensors, .jsonl."),
        (["--query", "x.png", "-o", "out.npy"], "Give a name that ends in .png, .jpg, .jpeg."),
        (["--layer", "0"], "Give 1 for the first, -1 for the last."),
        (["--layer", "9"], "Give 1 to 4, or -1 to -4."),
        (["--query", "x.png", "--pool", "none"], "Give --pool mean or cls."),
        (["--resume"], "Give -o FILE."),
    ],
    ids=str,
)
def test_embed_refuses_what_it_cannot_do(
    beit: Callable, pretrained_run: Path, picture: Callable, words: list[str], said: str
) -> None:
    ended = beit("embed", pretrained_run, picture("x.png"), *words)
    assert (ended.code, ended.out) == (2, "")
    assert said in ended.err


def test_query_without_another_image_has_no_neighbours(pretrained_run: Path, query: Path) -> None:
    argv = ["embed", str(pretrained_run), str(query), "--query", str(query), "--workers", "0"]
    code, said = at_terminal(lambda: main(argv))
    assert code == 0
    assert "No other image is there to compare with." in said


@pytest.mark.parametrize("argv", [["-o", ".npy"], ["-o", "out/.parquet"], ["--query", "x.png", "-o", ".png"]], ids=str)
def test_a_name_that_is_a_suffix_alone_is_refused(beit: Callable, pretrained_run: Path, argv: list[str]) -> None:
    ended = beit("embed", pretrained_run, "x.png", *argv)
    assert ended.code == 2
    assert "has no name before its suffix" in ended.err


def test_query_must_be_one_readable_image(beit: Callable, pretrained_run: Path, labelled_folder: Path) -> None:
    ended = beit("embed", pretrained_run, labelled_folder, "--query", labelled_folder, "--workers", 0)
    assert ended.code == 2
    assert "is 24 images" in ended.err
    assert beit("embed", pretrained_run, labelled_folder, "--query", labelled_folder / "no.png").code == 3


def test_an_image_on_stdin_is_embedded_and_asked_for_like_its_file(
    beit: Callable, pretrained_run: Path, labelled_folder: Path, query: Path
) -> None:
    (piped,) = beit("embed", pretrained_run, "-", "--workers", 0, stdin=query.read_bytes()).lines
    (named,) = beit("embed", pretrained_run, query, "--workers", 0).lines
    assert piped == named | {"path": "stdin"}
    line = ["embed", pretrained_run, labelled_folder, "--workers", 0, "--k", 2, "--query"]
    (told,) = beit(*line, "-", stdin=query.read_bytes()).lines
    assert told["query"] == "stdin"
    assert told["neighbours"][0] == {"path": str(query), "similarity": pytest.approx(1, abs=1e-5)}
    assert told["neighbours"][1:] == beit(*line, query).lines[0]["neighbours"][:1]


def test_python_embeds_as_the_command_line_does(pretrained_run: Path, labelled_folder: Path) -> None:
    told = list(beitcli.embed(pretrained_run, labelled_folder / "red", device="cpu", workers=0, progress=False))
    assert told == list(map(with_numbers, embed(config_of(pretrained_run, labelled_folder / "red", batch_size=64))))
    with pytest.raises(DataError):
        list(beitcli.embed(pretrained_run, labelled_folder / "no", progress=False))


@pytest.mark.slow
def test_two_processes_write_the_file_of_one(pretrained_run: Path, labelled_folder: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one.npy", tmp_path / "two.npy"
    list(embed(config_of(pretrained_run, labelled_folder, output=str(one), batch_size=5)))
    line = ["embed", pretrained_run, labelled_folder, "-o", two, "--gpus", 2, "--device", "cpu"]
    ended = in_processes(2, [*line, "--batch-size", 5, "--workers", 0])
    assert [each.code for each in ended] == [0, 0], ended
    (features, *names), (others, *own) = read(one), read(two)
    assert names == own
    assert np.array_equal(features, others)


@pytest.mark.parametrize("suffix", [".jsonl", ".npy"])
@pytest.mark.slow
def test_a_restarted_job_that_replaces_a_file_keeps_nothing_of_the_old_one(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"features{suffix}"
    list(embed(config_of(pretrained_run, labelled_folder / "red", output=str(out))))
    line = ["embed", pretrained_run, labelled_folder / "blue", "-o", out, "--overwrite", "--device", "cpu"]
    restarted = lambda rank: os.environ.update(TORCHELASTIC_RESTART_COUNT="1")  # noqa: E731
    ended = in_processes(2, [*line, "--workers", 0], before=restarted)
    assert [each.code for each in ended] == [0, 0], ended
    assert [Path(each).parent.name for each in read(out)[1]] == ["blue"] * 8
    ended = in_processes(2, [*line[:-3], "--device", "cpu", "--workers", 0], before=restarted)
    assert [each.code for each in ended] == [0, 0], ended
    assert "8 of 8 images are in the file already" in ended[0].err


def test_names_that_no_safetensors_header_holds_are_tensors_of_the_file(
    pretrained_run: Path, labelled_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, apart = tmp_path / "plain.safetensors", tmp_path / "apart.safetensors"
    list(embed(config_of(pretrained_run, labelled_folder, output=str(plain))))
    monkeypatch.setattr(safetensors_format, "_MOST_METADATA", 500)
    list(embed(config_of(pretrained_run, labelled_folder, output=str(apart))))
    with safe_open(apart, "np") as file:
        assert list(file.metadata()) == ["features"]
        assert json.loads(file.get_tensor("paths").tobytes()) == read(plain)[1]
        assert json.loads(file.get_tensor("labels").tobytes()) == read(plain)[2]
        assert np.array_equal(file.get_tensor("features"), read(plain)[0])
    again, before = read_features(apart), read_features(plain)
    assert (again.kind, again.paths, again.labels) == (before.kind, before.paths, before.labels)
    list(embed(config_of(pretrained_run, labelled_folder, output=str(apart), resume=True)))
    assert read_features(apart).paths == before.paths
