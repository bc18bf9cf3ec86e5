"""What strangers' files lead to: pipes and sockets, loops of links, runs that name themselves, weights that are NaN.

What may wait for ever runs in a child, which is killed in time.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from beitcli.cli.app import main
from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.caches.feature_cache import features_folder, load_features
from beitcli.data.caches.token_cache import TokenCache
from beitcli.data.sources.coco import read_coco
from beitcli.data.sources.open_data import open_data
from beitcli.errors import BadImage, BeitError, DataError, StorageError
from beitcli.models.checkpoints.open import open_model
from beitcli.runtime.storage.checkpoint import damage
from beitcli.runtime.storage.run_dir import RunFolder
from beitcli.runtime.weight_files.reader import read_header
from beitcli.tokenizers.open import open_tokenizer
from tests.faults.test_mutations import sign
from tests.helpers.forked import forked
from tests.helpers.hub_server import HubServer

pytestmark = pytest.mark.faults

SPECIAL = ["pipe", "socket", "device"]


def special(path: Path, kind: str) -> Path:
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        here = os.getcwd()
        os.chdir(path.parent)  # the path of a socket has 107 bytes at most
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
        os.chdir(here)
    else:
        path.symlink_to("/dev/zero")
    return path


def said(work: Callable[[], object], seconds: float = 20) -> str:
    """The error that `work` raises, in a child: one that waits for ever fails the test."""

    def child() -> int:
        try:
            print("no error:", work())
        except BeitError as error:
            print(type(error).__name__, error.message)
        return 0

    ended = forked(child, seconds)
    assert ended.code == 0, ended.err
    return ended.out


@pytest.mark.parametrize("kind", SPECIAL)
@pytest.mark.parametrize("name", ["x.tar", "x.parquet"])
def test_a_shard_that_is_no_file_is_refused(tmp_path: Path, name: str, kind: str) -> None:
    path = special(tmp_path / name, kind)
    text = said(lambda: open_data([str(path)]))
    assert text.startswith("DataError")
    assert "a device, pipe or socket, not a file" in text
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert "no error" in said(lambda: len(open_data([str(tmp_path)])))  # beside an image it is passed over


@pytest.mark.parametrize("kind", SPECIAL)
def test_an_image_or_annotations_that_are_no_file_are_refused(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path / "x.png", kind)
    (tmp_path / "list.txt").write_text("x.png\nlist.txt\n")
    listed = open_data([str(tmp_path / "list.txt")])
    assert "a device, pipe or socket" in said(lambda: listed.read(0))
    with pytest.raises(BadImage):
        listed.image(1)  # the list itself
    assert "holds no annotations" in said(lambda: read_coco(str(path)))


@pytest.mark.parametrize("name", ["SHA256SUMS", "config.json", "model.safetensors"])
def test_a_checkpoint_with_a_pipe_in_it_is_damaged(tmp_path: Path, finetuned_run: Path, name: str) -> None:
    run = shutil.copytree(finetuned_run, tmp_path / "run")
    for checkpoint in (run / "checkpoints").glob("step-*"):
        (checkpoint / name).unlink()
        os.mkfifo(checkpoint / name)
        assert damage(checkpoint)
    assert said(lambda: open_model(str(run))).startswith("StorageError")
    assert said(lambda: open_model(str(checkpoint))).startswith(("StorageError", "UsageError"))


@pytest.mark.parametrize("kind", SPECIAL)
def test_weights_that_are_no_file_are_refused(tmp_path: Path, kind: str) -> None:
    path = special(tmp_path / "w.pth", kind)
    assert "no regular file" in said(lambda: read_header(path))


def test_a_pipe_in_a_run_folder_is_refused_before_anything_is_written(tmp_path: Path, finetuned_run: Path) -> None:
    run = shutil.copytree(finetuned_run, tmp_path / "run")
    (run / "metrics.jsonl").unlink()
    os.mkfifo(run / "metrics.jsonl")
    assert "metrics.jsonl' is a device, pipe or socket" in said(lambda: RunFolder.create(run, resume=True))


def test_pipes_in_caches_count_as_missing(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, {"a": 1}, tokens=4, vocab_size=16)
    (cache.folder / "meta.json").unlink()
    os.mkfifo(cache.folder / "meta.json")
    os.mkfifo(cache.folder / "epoch-0000000.rows")
    assert "no error: None" in said(lambda: TokenCache(tmp_path, {"a": 1}, tokens=4, vocab_size=16).row(0, 0, 0))
    folder = features_folder(tmp_path, {"b": 2})
    folder.mkdir()
    for name in ("about.json", "labels.npy"):
        os.mkfifo(folder / name)
    assert "no error: None" in said(lambda: load_features(tmp_path, {"b": 2}, [1]))


def test_links_that_lead_to_one_another_end_by_name(tmp_path: Path) -> None:
    """Ten folders have ten million ways; two links to their own folder have none that holds an image."""
    loop = tmp_path / "loop"
    loop.mkdir()
    for name in "ab":
        (loop / name).symlink_to(".")
    assert "No images below" in said(lambda: open_data([str(loop)]))
    for number in range(10):
        folder = tmp_path / "clique" / f"d{number}"
        folder.mkdir(parents=True)
        Image.new("RGB", (8, 8)).save(folder / "a.png")
        for other in range(10):
            if other != number:
                (folder / f"l{other}").symlink_to(f"../d{other}")
    text = said(lambda: open_data([str(tmp_path / "clique")]))
    assert text.startswith("DataError Links below")
    assert "lead to the same 11 folders" in text


def test_links_to_the_folders_of_another_data_set_are_followed(tmp_path: Path) -> None:
    """2,000 classes that are links, and each of 500 folders twice."""
    for number in range(500):
        (tmp_path / "all" / f"{number:03d}").mkdir(parents=True)
        Image.new("RGB", (2, 2)).save(tmp_path / "all" / f"{number:03d}" / "a.png")
    (tmp_path / "data").mkdir()
    for number in range(2000):
        (tmp_path / "data" / f"c{number:04d}").symlink_to(f"../all/{number % 500:03d}")
    assert len(open_data([str(tmp_path / "data")])) == 2000


def test_a_run_that_is_its_own_tokenizer_is_refused(tmp_path: Path, pretrained_run: Path) -> None:
    first, second = (shutil.copytree(pretrained_run, tmp_path / name) for name in ("first", "second"))
    for run, named in ((first, first), (second, first)):
        rename_tokenizer(run, str(named))
    for run in (first, second):
        with pytest.raises(StorageError, match="names no tokenizer but itself"):
            open_tokenizer(str(run))


def rename_tokenizer(run: Path, reference: str) -> None:
    for checkpoint in (run / "checkpoints").glob("step-*"):
        document = json.loads((checkpoint / "config.json").read_text())
        document["beit"]["tokenizer"]["reference"] = reference
        (checkpoint / "config.json").write_text(json.dumps(document))
        sign(checkpoint)


def test_a_stranger_s_run_asks_nothing_of_the_hub(
    tmp_path: Path, pretrained_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    rename_tokenizer(run, "hf://owner/name")
    with HubServer({"owner/name": {"encoder.pkl": b"x"}}) as server:
        server.use(monkeypatch, tmp_path / "cache")
        with pytest.raises(StorageError) as refusal:
            open_tokenizer(str(run))
        assert server.requests == []
        assert "--tokenizer hf://owner/name" in refusal.value.hint
        with pytest.raises(BeitError):
            open_tokenizer("hf://owner/name")  # the user names it
        assert server.requests


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_by_name(
    tmp_path: Path, finetuned_run: Path, tokenizer_run: Path, labelled_folder: Path, beit: Callable, value: float
) -> None:
    runs = {}
    for name, source in (("classifier", finetuned_run), ("tokenizer", tokenizer_run)):
        runs[name] = shutil.copytree(source, tmp_path / name)
        for checkpoint in (runs[name] / "checkpoints").glob("step-*"):
            tensors = load_file(checkpoint / "model.safetensors")
            odd = next(each for each in tensors if each.endswith("weight"))
            tensors[odd].view(-1)[3] = value
            save_file(tensors, checkpoint / "model.safetensors")
            sign(checkpoint)
    image = labelled_folder / "red" / "01.png"
    for words in (
        ["predict", runs["classifier"], image],
        ["eval", runs["classifier"], labelled_folder],
        ["eval", runs["classifier"], labelled_folder, "--protocol", "knn", "--train", labelled_folder],
        ["attn-map", image, "--model", runs["classifier"], "-o", tmp_path / "map.png"],
        ["tokenize", image, "--tokenizer", runs["tokenizer"]],
    ):
        ended = beit(*words)
        assert (ended.code, ended.out) == (4, ""), (words, ended.err)
        assert "has NaN or infinite weights, in " in " ".join(ended.err.split())


def test_a_cached_token_beyond_the_vocabulary_counts_as_missing(tmp_path: Path) -> None:
    """Its checksum is right: whoever can write the file can make one."""
    wide = TokenCache(tmp_path, {"a": 1}, tokens=2, vocab_size=17)
    wide.vocab_size = 100
    wide.add(0, 3, 7, tokens := np.array([1, 17]))
    assert wide.row(0, 3, 7) is not None
    again = TokenCache(tmp_path, {"a": 1}, tokens=2, vocab_size=17)
    assert again.row(0, 3, 7) is None
    again.add(0, 3, 7, tokens - 1)
    assert again.row(0, 3, 7).tolist() == [0, 16]  # type: ignore[union-attr]


def test_a_settings_file_does_not_say_where_caches_are_written(tmp_path: Path, pretrained_run: Path) -> None:
    place = tmp_path / "elsewhere"
    file = tmp_path / "stranger.toml"
    file.write_text(f'command = "pretrain"\ntoken_cache = "{place}"\n')
    found = resolve(PretrainConfig, {"data": ["x"], "config": str(file)})
    assert found.config.token_cache is None
    assert f"Give --token-cache {place}" in found.notes[0]
    own = resolve(PretrainConfig, {"data": ["x"], "config": str(file), "token_cache": "mine"})
    assert (own.config.token_cache, own.notes) == ("mine", ())
    run = shutil.copytree(pretrained_run, tmp_path / "run")
    text = (run / "config.toml").read_text().replace("# token_cache is not set", f'token_cache = "{place}"')
    (run / "config.toml").write_text(text)
    resumed = resolve(PretrainConfig, {"out": str(run), "resume": True})
    assert resumed.config.token_cache is None
    assert str(place) in resumed.notes[0]


def test_a_picture_that_changed_under_its_name_is_told_on_resume(
    tmp_path: Path, labelled_folder: Path, beit: Callable
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    text = "--recipe tiny --target pixels --image-size 32 --patch-size 8 --num-masked 6 --batch-size 8 --device cpu"
    words = [*text.split(), "--steps", 4, "--save-every", 2, "--workers", 0]
    assert beit("pretrain", data, *words, "--out", tmp_path / "run").code == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    same = beit("pretrain", "--out", tmp_path / "run", "--resume")
    assert same.code == 0
    assert "since the run began" not in same.err
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-0000004")
    trainer = tmp_path / "run" / "checkpoints" / "step-0000002" / "trainer.json"
    trainer.write_text(json.dumps(json.loads(trainer.read_text()) | {"threads": 7}))
    sign(trainer.parent)
    Image.new("RGB", (9, 9)).save(data / "green" / "03.png")
    told = " ".join(beit("pretrain", "--out", tmp_path / "run", "--resume").err.split())
    assert f"A picture changed since the run began, by size or time, the first '{data}/green/03.png'" in told
    assert "the run was on 7 threads, this is on 1" in told


def test_an_unreadable_data_error_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError):
        open_data([str(tmp_path / "none.tar")])
    assert main(["mask-preview", str(tmp_path / "none.tar")]) == 3
