"""Cached and online tokens give the same training, whoever filled the cache; another's tokens are never used."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.caches.token_cache import TokenCache
from beitcli.engine.events import Event, Warned
from beitcli.engine.pretrain import pretrain
from beitcli.runtime.storage.checkpoint import newest_checkpoint
from beitcli.tokenizers.base import Tokenizer

UNREPEATED = ("images_per_second", "data_wait_share", "save_stall_seconds")
STEPS = 6  # of 7 of 23 images: the second epoch begins in the fourth


def train(
    data: Path, tokenizer: Path, out: Path, cache: Path | None = None, /, **changed: Any
) -> tuple[Path, list[Event]]:
    """A small pretraining run and what it told."""
    events: list[Event] = []
    flags = {
        "data": [str(data)], "out": str(out), "recipe": "tiny", "image_size": 32, "num_masked": 6, "min_block": 4,
        "tokenizer": str(tokenizer), "device": "cpu", "workers": 0, "steps": STEPS, "batch_size": 7,
        "micro_batch": 3, "save_every": 3, "previews": 0, "log_every": 1, "keep": 9,
    }  # fmt: skip
    if cache is not None:
        flags["token_cache"] = str(cache)
    pretrain(resolve(PretrainConfig, flags | changed).config, events.append)
    return out, events


@pytest.fixture
def run(tmp_path: Path, labelled_folder: Path, tokenizer_run: Path) -> Callable[..., tuple[Path, list[Event]]]:
    """`run("name", cache, **settings)`: `train` below the test's folder."""

    def start(name: str, cache: Path | None, **changed: Any) -> tuple[Path, list[Event]]:
        return train(labelled_folder, tokenizer_run, tmp_path / name, cache, **changed)

    return start


@pytest.fixture(scope="module")
def online(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> Path:
    """The run without a cache."""
    return train(labelled_folder, tokenizer_run, tmp_path_factory.mktemp("online") / "run")[0]


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path, tokenizer_run: Path) -> tuple[Path, Path]:
    """A run and the cache that it filled, which tests copy."""
    root = tmp_path_factory.mktemp("filled")
    return train(labelled_folder, tokenizer_run, root / "run", root / "cache")[0], root / "cache"


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each encoding."""
    sizes: list[int] = []
    encode = Tokenizer.encode_batch_invariant

    def counting(self: Tokenizer, images: torch.Tensor) -> torch.Tensor:
        sizes.append(len(images))
        return encode(self, images)

    monkeypatch.setattr(Tokenizer, "encode_batch_invariant", counting)
    return sizes


def outcome(run: Path) -> tuple[Any, ...]:
    """Weights, optimizer and every figure that does not name a speed."""
    newest = newest_checkpoint(run)
    assert newest is not None
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if k not in UNREPEATED} for line in lines]
    files = [(newest.path / name).read_bytes() for name in ("model.safetensors", "trainer.safetensors")]
    return files, metrics, newest.trainer["figures"]


def warnings(events: list[Event], place: Path) -> list[str]:
    return [e.message for e in events if isinstance(e, Warned) and str(place) in e.message]


def records(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in sorted(cache.rglob("*.rows"))}


# The same training


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2, 4])
def test_cached_and_online_tokens_give_the_same_run(
    run: Callable, online: Path, tmp_path: Path, encoded: list, workers: int
) -> None:
    cache = tmp_path / "cache"
    first, _ = run("first", cache, workers=workers)
    kept = records(cache)
    encoded.clear()
    second, _ = run("second", cache, workers=workers)
    assert encoded == []
    assert outcome(first) == outcome(second) == outcome(online)
    assert records(cache) == kept
    assert len(kept) == 2


def test_a_resumed_run_takes_what_was_kept_before_it(
    run: Callable, online: Path, tmp_path: Path, encoded: list
) -> None:
    cache = tmp_path / "cache"
    run("parted", cache, save_every=3)
    shutil.rmtree(tmp_path / "parted" / "checkpoints" / "step-0000006")
    encoded.clear()
    again, _ = run("parted", cache, resume=True)
    assert encoded == []
    assert outcome(again) == outcome(online)
    shutil.rmtree(again / "checkpoints" / "step-0000006")
    shutil.rmtree(cache)  # a run goes on without what it kept, too
    assert outcome(run("parted", cache, resume=True)[0]) == outcome(online)


def test_a_partly_filled_cache_gives_the_same_run(run: Callable, online: Path, tmp_path: Path, encoded: list) -> None:
    """Batches of which some images are kept: only the others are encoded."""
    cache = tmp_path / "cache"
    run("other", cache, steps=2, holdout=0, batch_size=5)
    encoded.clear()
    mixed, _ = run("mixed", cache, workers=2)
    assert 0 < sum(encoded) < STEPS * 7
    assert outcome(mixed) == outcome(online)


def test_an_ablation_takes_the_tokens_of_another_run(
    run: Callable, filled: tuple[Path, Path], tmp_path: Path, encoded: list
) -> None:
    cache = Path(shutil.copytree(filled[1], tmp_path / "cache"))
    online, _ = run("online", None, masking="random", lr=1e-4)
    encoded.clear()
    ablation, _ = run("ablation", cache, masking="random", lr=1e-4)
    assert encoded == []
    assert outcome(ablation) == outcome(online)
    assert len(list(cache.iterdir())) == 1


def test_batches_in_pieces_join_what_only_some_images_have(
    run: Callable, online: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    run("other", cache, steps=2, holdout=0, batch_size=5)
    monkeypatch.setattr("beitcli.data.loading.read_ahead._BYTES", 4e4)
    assert outcome(run("pieces", cache, workers=2)[0]) == outcome(online)


# Never another's


@pytest.mark.parametrize(
    "changed", [{"seed": 5}, {"color_jitter": 0.2}, {"min_crop": 0.3}, {"token_precision": "bf16"}, {"image_size": 64}]
)
def test_other_settings_have_a_cache_of_their_own(
    run: Callable, tmp_path: Path, encoded: list, changed: dict[str, Any]
) -> None:
    cache = tmp_path / "cache"
    run("first", cache, steps=1)
    encoded.clear()
    online, _ = run("online", None, steps=1, **changed)
    without = sum(encoded)
    encoded.clear()
    other, _ = run("other", cache, steps=1, **changed)
    assert sum(encoded) == without
    assert len(list(cache.iterdir())) == 2
    assert outcome(other) == outcome(online)


def test_another_tokenizer_and_other_data_have_a_cache_of_their_own(
    run: Callable, tmp_path: Path, tokenizer_run: Path, labelled_folder: Path
) -> None:
    cache = tmp_path / "cache"
    run("first", cache, steps=1)
    run("tokenizer", cache, steps=1, tokenizer=str(tokenizer_run / "checkpoints" / "step-0000002"))
    assert len(list(cache.iterdir())) == 2
    run("data", cache, steps=1, data=[str(labelled_folder / "red"), str(labelled_folder / "blue")])
    assert len(list(cache.iterdir())) == 3
    run("limit", cache, steps=1, limit=12)  # a part of the same data
    assert len(list(cache.iterdir())) == 3


def test_a_picture_that_changed_under_its_name_is_encoded_again(
    run: Callable, tmp_path: Path, labelled_folder: Path, encoded: list
) -> None:
    data, cache = tmp_path / "data", tmp_path / "cache"
    shutil.copytree(labelled_folder, data)
    run("first", cache, data=[str(data)])
    changed = next((data / "red").iterdir())
    shutil.copy(next((data / "blue").glob(f"*{changed.suffix}")), changed)
    online, _ = run("online", None, data=[str(data)])
    encoded.clear()
    cached, _ = run("cached", cache, data=[str(data)])
    assert set(encoded) == {1}
    assert outcome(cached) == outcome(online)


@pytest.mark.parametrize("damage", ["bits", "cut", "empty", "zeros", "meta", "swapped", "no meta"])
def test_a_damaged_cache_is_made_anew(run: Callable, filled: tuple[Path, Path], tmp_path: Path, damage: str) -> None:
    first, cache = filled[0], Path(shutil.copytree(filled[1], tmp_path / "cache"))
    whole = records(cache)
    (folder,) = cache.iterdir()
    rows = sorted(folder.glob("*.rows"))
    content = rows[0].read_bytes()
    if damage == "bits":
        rows[0].write_bytes(bytes(byte ^ (place % 3 == 0) for place, byte in enumerate(content)))
    elif damage == "cut":
        rows[0].write_bytes(content[: len(content) // 2 + 1])
    elif damage == "empty":
        rows[0].write_bytes(b"")
    elif damage == "zeros":
        rows[0].write_bytes(bytes(len(content)))
    elif damage == "swapped":
        rows[0].write_bytes(rows[1].read_bytes())
    elif damage == "meta":
        (folder / "meta.json").write_text('{"tokenizer": "ano')
    else:
        (folder / "meta.json").unlink()
    second, events = run("second", cache)
    assert outcome(first) == outcome(second)
    assert json.loads((folder / "meta.json").read_text())["grid"] == [4, 4]
    assert bool(warnings(events, cache)) == (damage == "meta")
    assert records(cache).keys() == whole.keys()
    run("third", cache)
    for name, before in whole.items():
        after = records(cache)[name]
        assert all(a == b for a, b in zip(_rows(after), _rows(before), strict=False) if any(b)), name


def _rows(content: bytes) -> list[bytes]:
    size = 4 + 16 * 2
    return [content[start : start + size] for start in range(0, len(content), size)]


def test_a_cache_renamed_to_another_key_is_not_used(run: Callable, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    run("first", cache, steps=1)
    (theirs,) = cache.iterdir()
    online, _ = run("online", None, steps=1, seed=5)
    run("other", cache, steps=1, seed=5)
    ours = next(each for each in cache.iterdir() if each != theirs)
    shutil.rmtree(ours)
    theirs.rename(ours)
    again, events = run("again", cache, steps=1, seed=5)
    assert outcome(again) == outcome(online)
    assert "is damaged or another cache's" in warnings(events, cache)[0]


# A disk that takes nothing


def test_a_full_disk_costs_the_cache_and_not_the_run(run: Callable, tmp_path: Path, labelled_folder: Path) -> None:
    """RLIMIT_FSIZE as a disk that ends; SIGXFSZ is ignored by Python."""
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    messages: list[str] = []
    cache = TokenCache(tmp_path / "cache", {"who": "a test"}, tokens=4, vocab_size=100)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30, hard))
    try:
        for index in range(6):
            cache.add(0, index, pixels=9, tokens=np.arange(4) + index)
            messages.append(cache.trouble)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert messages[:2] == ["", ""]
    assert "File too large" in messages[-1] or "no space left" in messages[-1]
    assert [cache.row(0, index, 9) is not None for index in range(4)] == [True, True, False, False]
    assert cache.row(0, 1, 9).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("where", ["rows", "folder"])
def test_a_place_that_cannot_be_written_is_told_once(run: Callable, tmp_path: Path, where: str) -> None:
    online, _ = run("online", None)
    cache = tmp_path / "cache" if where == "rows" else Path("/proc/tokens")
    if where == "rows":
        run("first", cache, steps=1)
        (folder,) = cache.iterdir()
        for epoch in (0, 1):
            (folder / f"epoch-{epoch:07d}.rows").unlink(missing_ok=True)
            (folder / f"epoch-{epoch:07d}.rows").mkdir()
    cached, events = run("cached", cache)
    assert outcome(cached) == outcome(online)
    assert len(warnings(events, cache)) == 1
    assert "No tokens are kept in" in warnings(events, cache)[0]


def test_a_file_in_place_of_the_folder_is_refused(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("mine")
    with pytest.raises(Exception, match="is a file"):
        run("first", tmp_path / "cache")


# Records


@pytest.mark.parametrize(("vocab_size", "size"), [(65536, 2), (65537, 4)])
def test_records_are_a_checksum_and_the_tokens(tmp_path: Path, vocab_size: int, size: int) -> None:
    cache = TokenCache(tmp_path, {"who": "a test"}, tokens=3, vocab_size=vocab_size)
    tokens = np.array([0, vocab_size - 1, 7])
    cache.add(2, 5, 77, tokens)
    cache.close()
    content = (cache.folder / "epoch-0000002.rows").read_bytes()
    assert len(content) == 6 * (4 + 3 * size)
    assert content[: 5 * (4 + 3 * size)] == bytes(5 * (4 + 3 * size))
    packed = tokens.astype(f"<u{size}").tobytes()
    assert content[-3 * size :] == packed
    place = zlib.crc32(f"{cache.key} 2 5 77 ".encode())
    assert int.from_bytes(content[-3 * size - 4 : -3 * size], "little") == zlib.crc32(packed, place)
    assert cache.row(2, 5, 77).tolist() == tokens.tolist()
    assert [cache.row(2, 5, 78), cache.row(2, 4, 77), cache.row(1, 5, 77), cache.row(2, 6, 77)] == [None] * 4
    another = TokenCache(tmp_path, {"who": "another"}, tokens=3, vocab_size=vocab_size)
    another.folder.mkdir(exist_ok=True)
    shutil.copy(cache.folder / "epoch-0000002.rows", another.folder)
    assert another.row(2, 5, 77) is None


def test_many_epochs_keep_few_files_open(tmp_path: Path) -> None:
    cache = TokenCache(tmp_path, {}, tokens=3, vocab_size=8)
    before = len(os.listdir("/dev/fd"))
    for epoch in range(20):
        cache.add(epoch, 0, 1, np.full(3, epoch % 8))
    for epoch in range(20):
        assert cache.row(epoch, 0, 1).tolist() == [epoch % 8] * 3
    assert len(os.listdir("/dev/fd")) <= before + 4
    cache.close()
    assert len(os.listdir("/dev/fd")) == before


def test_meta_says_what_the_tokens_follow_from(run: Callable, tmp_path: Path, tokenizer_run: Path) -> None:
    cache = tmp_path / "cache"
    run("first", cache, steps=1)
    (meta,) = cache.rglob("meta.json")
    document = json.loads(meta.read_text())
    newest = newest_checkpoint(tokenizer_run)
    assert newest is not None
    assert len(load_file(newest.path / "model.safetensors")) > 0
    assert (document["format"], document["precision"], document["images"]) == (1, "fp32", 24)
    assert document["view"]["token_size"] == [16, 16]
    assert document["view"]["seed"] == 0
    assert document["tokens"] == 16
