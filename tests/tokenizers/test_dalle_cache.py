"""`dall-e` by its name: from a hub on the loopback, from the cache, with a decoder where one is known."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from safetensors.torch import load_file, save, save_file

from beitcli.errors import StorageError
from beitcli.tokenizers.dalle import huggingface_name, openai_name
from beitcli.tokenizers.open import open_tokenizer
from tests.helpers.forked import Child
from tests.helpers.hub_server import HubServer
from tests.helpers.released_dalle import Decoder, Encoder, save_module

REPO = "facebook/flava-image-codebook"


@pytest.fixture
def pair() -> tuple[Encoder, Decoder]:
    torch.manual_seed(0)
    return Encoder(), Decoder()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def folder(pair: tuple[Encoder, Decoder], tmp_path: Path) -> Path:
    save_module(pair[0], tmp_path / "dalle" / "encoder.pkl")
    return save_module(pair[1], tmp_path / "dalle" / "decoder.pkl").parent


@pytest.fixture
def server(
    pair: tuple[Encoder, Decoder], cache: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[HubServer]:
    """A hub with the codebook, under the names that the hub has."""
    ours = open_tokenizer(str(folder)).model.encoder.state_dict()
    shutil.rmtree(cache)
    weights = save({huggingface_name(name): tensor.contiguous() for name, tensor in ours.items()})
    config = b'{"model_type": "flava_image_codebook"}'
    with HubServer({REPO: {"config.json": config, "model.safetensors": weights}}) as server:
        server.use(monkeypatch, cache)
        yield server


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def kept(cache: Path) -> dict[str, str]:
    """Name below the cache's `dall-e`, and SHA-256, of every file there."""
    files = sorted(path for path in (cache / "dall-e").rglob("*") if path.is_file())
    return {str(path.relative_to(cache / "dall-e")): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


# By name


def test_dalle_is_fetched_once_and_kept_with_its_hash(server: HubServer, cache: Path, folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    tokenizer = open_tokenizer("dall-e", on_progress=lambda *news: told.append(news))
    size = len(server.repos[REPO]["model.safetensors"])
    assert told[-1][1:] == (size, size)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert REPO in told[0][0]
    assert (tokenizer.reference, tokenizer.can_decode, tokenizer.notes) == ("dall-e", False, ())
    assert set(kept(cache)) == {"encoder.safetensors", "weights.sha256"}
    record = (cache / "dall-e" / "weights.sha256").read_text()
    assert record == f"{kept(cache)['encoder.safetensors']}  encoder.safetensors\n"
    asked = len(server.requests)
    again = open_tokenizer("dall-e")
    assert len(server.requests) == asked
    assert again.sha256 == tokenizer.sha256 == open_tokenizer(str(folder)).sha256


def test_dalle_opens_offline_once_it_is_kept(server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StorageError, match="HF_HUB_OFFLINE is set") as refused:
        open_tokenizer("dall-e")
    assert "pass --tokenizer: a folder" in refused.value.hint
    monkeypatch.delenv("HF_HUB_OFFLINE")
    sha256 = open_tokenizer("dall-e").sha256
    shutil.rmtree(cache / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert open_tokenizer("dall-e").sha256 == sha256


def test_a_damaged_encoder_is_fetched_again_and_said(server: HubServer, cache: Path) -> None:
    sha256 = open_tokenizer("dall-e").sha256
    whole = kept(cache)
    damage(cache / "dall-e" / "encoder.safetensors")
    shutil.rmtree(cache / "hub")
    mended = open_tokenizer("dall-e")
    assert (mended.sha256, kept(cache)) == (sha256, whole)
    (note,) = mended.notes
    assert "encoder.safetensors' is damaged: it does not match its SHA-256; it was fetched again" in note
    assert open_tokenizer("dall-e").notes == ()


def test_a_damaged_encoder_is_refused_where_it_cannot_be_fetched(
    server: HubServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_tokenizer("dall-e")
    damage(cache / "dall-e" / "encoder.safetensors")
    shutil.rmtree(cache / "hub")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(StorageError, match=r"does not match its SHA-256, and: .*HF_HUB_OFFLINE"):
        open_tokenizer("dall-e")


def test_a_download_cut_short_goes_on_where_it_stopped(server: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(server.repos[REPO]["model.safetensors"])
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", size // 2 + 1)  # what is written at a time
    server.cut_after = size // 2 + 1
    assert open_tokenizer("dall-e").vocab_size == 32
    assert [request.range for request in server.bodies()] == ["", f"bytes={size // 2 + 1}-"]


def test_dalle_takes_the_decoder_that_a_folder_of_the_same_encoder_had(
    server: HubServer, cache: Path, folder: Path, tmp_path: Path
) -> None:
    pair = open_tokenizer(str(folder))
    torch.manual_seed(1)
    save_module(Encoder(), tmp_path / "other" / "encoder.pkl")
    save_module(Decoder(), tmp_path / "other" / "decoder.pkl")
    other = open_tokenizer(str(tmp_path / "other"))
    assert other.sha256 != pair.sha256
    named = open_tokenizer("dall-e")
    tokens = torch.arange(4).view(1, 4)
    assert torch.equal(named.decode(tokens, (2, 2)), pair.decode(tokens, (2, 2)))
    damage(cache / "dall-e" / pair.sha256[:16] / "decoder.safetensors")
    alone = open_tokenizer("dall-e")
    assert not alone.can_decode
    assert "decoder.safetensors' is damaged" in alone.notes[0]
    assert open_tokenizer(str(folder)).can_decode
    assert open_tokenizer("dall-e").can_decode


def test_a_repository_of_the_hub_opens_by_its_name(server: HubServer, pair: tuple[Encoder, Decoder]) -> None:
    server.repos["someone/encoder"] = {"pytorch_model.bin": b"<html><title>Sign in</title></html>"}
    tokenizer = open_tokenizer(f"hf://{REPO}@{server.commit(REPO)}")
    assert torch.equal(tokenizer.model.encoder.stem.bias, pair[0].blocks.input.b)
    with pytest.raises(StorageError, match=r"web page.*Sign in"):
        open_tokenizer("hf://someone/encoder")
    with pytest.raises(StorageError, match="no model repository 'no/one'"):
        open_tokenizer("hf://no/one")


# What a folder leaves in the cache


def test_pickles_are_kept_as_safetensors_with_their_hash(
    cache: Path, folder: Path, pair: tuple[Encoder, Decoder]
) -> None:
    tokenizer = open_tokenizer(str(folder))
    place = tokenizer.sha256[:16]
    names = ["decoder.safetensors", "encoder.safetensors", "weights.sha256"]
    assert list(kept(cache)) == [f"{place}/{name}" for name in names]
    ended = subprocess.run(
        ["sha256sum", "-c", "weights.sha256"], cwd=cache / "dall-e" / place, capture_output=True, text=True
    )
    assert ended.stdout == "encoder.safetensors: OK\ndecoder.safetensors: OK\n"
    stored = load_file(cache / "dall-e" / place / "encoder.safetensors")
    theirs = pair[0].state_dict()
    assert all(torch.equal(tensor, theirs[openai_name(name)]) for name, tensor in stored.items())
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")}
    assert open_tokenizer(str(cache / "dall-e" / place)).sha256 == tokenizer.sha256
    assert open_tokenizer(str(folder)).notes == ()
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.*")} == before


def test_a_cache_that_cannot_be_written_only_warns(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "file" / "cache"))
    tokenizer = open_tokenizer(str(folder))
    assert tokenizer.can_decode
    assert "is not kept in" in tokenizer.notes[0]
    assert "BEIT_CACHE_DIR" in tokenizer.notes[0]


def test_a_cache_without_room_only_warns(cache: Path, folder: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, limits[1]))
    try:
        tokenizer = open_tokenizer(str(folder))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert tokenizer.can_decode
    assert "is not kept in" in tokenizer.notes[0]
    assert kept(cache) == {}
    assert open_tokenizer(str(folder)).notes == ()
    assert len(kept(cache)) == 3


def test_processes_that_keep_the_same_weights_at_once_do_not_harm_each_other(cache: Path, folder: Path) -> None:
    def work() -> None:
        opened = open_tokenizer(str(folder))
        print(opened.sha256, opened.notes)

    started = [Child(work) for _ in range(2)]
    said = {child.ended().out for child in started}
    tokenizer = open_tokenizer(str(folder))
    assert said == {f"{tokenizer.sha256} ()\n"}
    assert len(kept(cache)) == 3
    assert open_tokenizer(str(cache / "dall-e" / tokenizer.sha256[:16])).can_decode


def test_what_a_killed_process_left_is_removed_after_an_hour(cache: Path, folder: Path) -> None:
    place = cache / "dall-e" / open_tokenizer(str(folder)).sha256[:16]
    old, new = place / ".encoder.safetensors.partial-1", place / ".encoder.safetensors.partial-2"
    for path, seconds in ((old, 4000), (new, 100)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - seconds,) * 2)
    (place / "weights.sha256").unlink()
    assert open_tokenizer(str(folder)).notes == ()
    assert (old.exists(), new.exists()) == (False, True)


# tokenize


def test_tokenize_and_back_with_the_released_pair(
    beit: Callable, cache: Path, folder: Path, picture: Callable, tmp_path: Path
) -> None:
    image, tokens = picture("a.png"), tmp_path / "tokens.jsonl"
    ended = beit("tokenize", "--tokenizer", folder, image, "-o", tokens, "--reconstruct", tmp_path / "there")
    assert ended.code == 0, ended.err
    document = json.loads(tokens.read_text())
    assert (document["grid"], len(document["tokens"])) == ([14, 14], 196)
    assert beit("tokenize", "--tokenizer", folder, "--decode", tokens, "-o", tmp_path / "back").code == 0
    assert (tmp_path / "back" / "a.png").read_bytes() == (tmp_path / "there" / "a.png").read_bytes()


def test_without_a_decoder_there_are_tokens_but_no_pictures(
    beit: Callable, server: HubServer, picture: Callable, tmp_path: Path
) -> None:
    image = picture("a.png")
    ended = beit("tokenize", "--tokenizer", "dall-e", image)
    assert (ended.code, len(ended.lines[0]["tokens"])) == (0, 196)
    (metrics,) = beit("tokenize", "--tokenizer", "dall-e", image, "--stats").lines
    assert (metrics["images"], metrics["vocab_size"]) == (1, 32)
    assert metrics["codes_used"] == len(set(ended.lines[0]["tokens"]))
    assert (metrics["mae"], metrics["mae_normalized"], metrics["psnr"]) == (None, None, None)
    out = tmp_path / "out"
    for argv, stdin in ((["--reconstruct", out, image], b""), (["--decode", "-o", out], ended.out.encode())):
        refused = beit("tokenize", "--tokenizer", "dall-e", *argv, stdin=stdin)
        assert (refused.code, refused.out) == (4, "")
        assert "has no decoder" in refused.err
        assert "decoder.pkl" in refused.err
        assert not out.exists()


def test_tokenize_says_what_the_cache_cannot_hold(
    beit: Callable, folder: Path, picture: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "file"))
    ended = beit("tokenize", "--tokenizer", folder, picture("a.png"))
    assert ended.code == 0
    assert "is not kept in" in ended.err


def test_tokenize_refuses_weights_that_lack_a_key(
    beit: Callable, cache: Path, picture: Callable, tmp_path: Path
) -> None:
    tensors = {name: tensor.detach() for name, tensor in Encoder().state_dict().items()}
    del tensors["blocks.group_4.block_2.res_path.conv_3.w"]
    save_file(tensors, tmp_path / "encoder.safetensors")
    ended = beit("tokenize", "--tokenizer", tmp_path / "encoder.safetensors", picture("a.png"))
    assert ended.code == 4
    assert "blocks.group_4.block_2.res_path.conv_3.w is missing" in ended.err
