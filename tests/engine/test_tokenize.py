"""tokenize, through the command line: documents, files that go on, pictures of tokens, and the way back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors import safe_open

from beitcli.config.resolve import resolve
from beitcli.config.tokenize import TokenizeConfig
from beitcli.config.train_tokenizer import TrainTokenizerConfig
from beitcli.data.transforms.base import fit_center, to_array
from beitcli.engine.events import Event, Progress
from beitcli.engine.io.inputs import open_inputs
from beitcli.engine.io.outputs import OutputNames
from beitcli.engine.io.token_files import open_token_file
from beitcli.engine.io.token_lines import TokenKind
from beitcli.engine.tokenize import tokenize as engine_tokenize
from beitcli.engine.train_tokenizer import train_tokenizer
from beitcli.errors import StorageError
from beitcli.tokenizers.open import open_tokenizer
from tests.helpers.forked import forked

CODES, GRID = 16, [4, 4]
FORMATS = [".jsonl", ".npz", ".safetensors", ".parquet"]


@pytest.fixture
def tokenize(beit: Callable, tokenizer_run: Path) -> Callable:
    return lambda *argv, stdin=b"": beit("tokenize", "--tokenizer", tokenizer_run, *argv, stdin=stdin)


def read(path: Path) -> list[tuple[str, list[int]]]:
    """(path, tokens) of a token file, by its format's own library."""
    if path.suffix == ".jsonl":
        documents = [json.loads(line) for line in path.read_text().splitlines()]
        return [(document["path"], document["tokens"]) for document in documents]
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            assert arrays["grid"].tolist() == GRID
            return list(zip(arrays["paths"].tolist(), arrays["tokens"].tolist(), strict=True))
    if path.suffix == ".parquet":
        rows = parquet.read_table(path).to_pylist()
        assert all(row["grid"] == GRID for row in rows)
        return [(row["path"], row["tokens"]) for row in rows]
    with safe_open(path, framework="numpy") as tensors:
        assert tensors.get_tensor("grid").tolist() == GRID
        rows = tensors.get_tensor("tokens").tolist()
        return list(zip(json.loads(tensors.metadata()["paths"]), rows, strict=True))


# Documents


def test_tokenize_documents_hold_the_tokens_that_the_model_gives(
    tokenize: Callable, tokenizer_run: Path, labelled_folder: Path
) -> None:
    tokenizer = open_tokenizer(str(tokenizer_run))
    ended = tokenize(labelled_folder, "--batch-size", 5)
    assert ended.code == 0
    for document in ended.lines:
        assert list(document) == ["path", "grid", "tokens"]
        assert document["grid"] == GRID
        with Image.open(document["path"]) as image:
            transform = to_array(fit_center(image.convert("RGB"), 16, filter=Image.Resampling.LANCZOS))
        logits = tokenizer.model.encoder(0.1 + 0.8 * torch.from_numpy(transform)[None].float() / 255)  # DALL-E, A.3
        assert document["tokens"] == logits.argmax(dim=1).flatten().tolist()
    assert len({tuple(document["tokens"]) for document in ended.lines}) > 1


def test_tokenize_keeps_the_order_of_its_inputs(tokenize: Callable, labelled_folder: Path) -> None:
    paths = [str(path) for path in sorted(labelled_folder.rglob("*.*"), key=lambda path: (path.name, str(path)))][::-1]
    by_three = tokenize(*paths, "--batch-size", 3)
    assert [document["path"] for document in by_three.lines] == paths
    assert tokenize(*paths, "--batch-size", 64, "--workers", 2).out == by_three.out


def test_tokenize_reads_parquet_as_it_reads_files(tokenize: Callable, labelled_folder: Path, tmp_path: Path) -> None:
    images = [{"bytes": path.read_bytes(), "path": path.name} for path in sorted(labelled_folder.rglob("*.*g"))]
    parquet.write_table(
        pa.table({"image": [*images[:20], None, *images[20:]]}), tmp_path / "x.parquet", row_group_size=7
    )
    expected = [document["tokens"] for document in tokenize(labelled_folder).lines]
    ended = tokenize(tmp_path / "x.parquet")
    assert ended.code == 3
    assert ended.lines[20] == {"path": f"{tmp_path}/x.parquet/20", "error": "no image in its row"}
    assert [document["tokens"] for document in ended.lines if "tokens" in document] == expected


def test_opening_large_data_tells_how_far_it_is(labelled_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.data.sources.formats._folder_listing._TELL_EVERY", 10)
    events: list[Event] = []
    config = resolve(TokenizeConfig, {"inputs": [str(labelled_folder)], "tokenizer": "pixels"}).config
    open_inputs(config, sample_size=16, on_event=events.append)
    assert events == [Progress("looking for images", done, 0, "image") for done in (10, 20)]


def test_tokenize_size_sets_the_grid(tokenize: Callable, picture: Callable) -> None:
    (document,) = tokenize(picture("a.png"), "--size", 24).lines
    assert document["grid"] == [6, 6]
    assert len(document["tokens"]) == 36


def test_tokenize_reads_names_with_newlines_from_nul_separated_stdin(tokenize: Callable, picture: Callable) -> None:
    names = [str(picture("one\ntwo.png")), str(picture("three four.png")), str(picture("fünf.png"))]
    ended = tokenize("-0", "-", stdin="\0".join(names).encode() + b"\0")
    assert [document["path"] for document in ended.lines] == names
    assert ended.code == 0
    ended = tokenize("-0", "-", "-o", Path(names[1]).with_name("t.jsonl"), stdin="\0".join(names).encode())
    assert ended.code == 0
    assert [path for path, _ in read(Path(names[1]).with_name("t.jsonl"))] == names


def test_tokenize_without_input_reads_paths_from_stdin(tokenize: Callable, picture: Callable) -> None:
    name = str(picture("a.png"))
    assert [document["path"] for document in tokenize(stdin=name.encode() + b"\n").lines] == [name]


def test_tokenize_survives_names_that_are_no_text(tokenize: Callable, picture: Callable, tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/\xff\xfe.png"
    with open(name, "wb") as file:
        file.write(picture("a.png").read_bytes())
    ended = tokenize("-", "--reconstruct", tmp_path / "out", stdin=name + b"\n")
    assert ended.code == 0
    assert ended.lines[0]["path"].encode(errors="surrogateescape") == name
    assert len(list((tmp_path / "out").iterdir())) == 2


def test_tokenize_takes_the_tokenizer_that_a_pretraining_run_learned_from(
    beit: Callable, tokenize: Callable, pretrained_run: Path, picture: Callable
) -> None:
    image = picture("a.png")
    newest = pretrained_run / "checkpoints" / "step-0000004"
    for reference in (pretrained_run, newest):
        ended = beit("tokenize", "--tokenizer", reference, image)
        assert ended.code == 0, ended.err
        assert ended.out == tokenize(image).out


# Files


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_writes_the_same_tokens_in_every_format(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    documents = tokenize(labelled_folder).lines
    target = tmp_path / "new" / f"tokens{suffix}"
    ended = tokenize(labelled_folder, "-o", target)
    assert (ended.code, ended.out) == (0, "")
    assert read(target) == [(document["path"], document["tokens"]) for document in documents]
    assert [path.name for path in target.parent.iterdir()] == [target.name]


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_refuses_an_existing_file_untouched(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"tokens{suffix}"
    target.write_bytes(b"somebody's work")
    ended = tokenize(labelled_folder, "-o", target)
    assert (ended.code, ended.out) == (2, "")
    assert "--resume" in ended.err
    assert target.read_bytes() == b"somebody's work"


def test_tokenize_refuses_a_suffix_that_it_does_not_know(tokenize: Callable, picture: Callable, tmp_path: Path) -> None:
    ended = tokenize(picture("a.png"), "-o", tmp_path / "tokens.csv")
    assert ended.code == 2
    assert ".jsonl, .npz, .safetensors, .parquet" in ended.err
    assert not (tmp_path / "tokens.csv").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_resume_adds_what_the_file_lacks(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    whole, parted = tmp_path / f"whole{suffix}", tmp_path / f"parted{suffix}"
    folders = [labelled_folder / name for name in ("blue", "green", "red")]
    assert tokenize(*folders, "-o", whole).code == 0
    assert tokenize(folders[0], "-o", parted, "--resume").code == 0
    ended = tokenize(*folders, "-o", parted, "--resume")
    assert ended.code == 0
    assert "8 of 24 images are in the file already" in ended.err
    assert ended.err.splitlines()[-1] == f"Made '{parted}': 24 images, 4 x 4 tokens of 16 codes each."
    assert read(parted) == read(whole)
    before = parted.read_bytes()
    assert tokenize(*folders, "-o", parted, "--resume").code == 0
    assert read(parted) == read(whole)
    if suffix == ".jsonl":
        assert parted.read_bytes() == before == whole.read_bytes()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5, 0.999])
def test_tokenize_resume_mends_lines_that_were_cut_off(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, share: float
) -> None:
    target = tmp_path / "tokens.jsonl"
    assert tokenize(labelled_folder, "-o", target).code == 0
    whole = target.read_bytes()
    target.write_bytes(whole[: int(share * len(whole))])
    assert tokenize(labelled_folder, "-o", target, "--resume").code == 0
    assert target.read_bytes() == whole


@pytest.mark.parametrize("suffix", FORMATS[1:])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.95])
def test_tokenize_resume_refuses_a_cut_off_archive_untouched(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, suffix: str, share: float
) -> None:
    target = tmp_path / f"tokens{suffix}"
    assert tokenize(labelled_folder, "-o", target).code == 0
    target.write_bytes(target.read_bytes()[: int(share * target.stat().st_size)])
    before = target.read_bytes()
    ended = tokenize(labelled_folder, "-o", target, "--resume")
    assert (ended.code, ended.out) == (4, ""), ended.err
    assert "no file of tokens" in ended.err
    assert target.read_bytes() == before


def test_tokenize_resume_tries_bad_images_again(tokenize: Callable, picture: Callable, tmp_path: Path) -> None:
    good = picture("data/a.png")
    bad = good.with_name("b.png")
    bad.write_bytes(b"")
    target = tmp_path / "tokens.jsonl"
    for inputs in ([bad], [good, bad]):
        assert tokenize(*inputs, "-o", target, "--resume").code == 3
        documents = [json.loads(line) for line in target.read_text().splitlines()]
        assert [document["path"] for document in documents] == [str(path) for path in inputs]
        assert documents[-1]["error"].startswith("empty file")
    shutil.copy(good, bad)
    assert tokenize(good, bad, "-o", target, "--resume").code == 0
    assert [path for path, _ in read(target)] == [str(good), str(bad)]


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_resume_refuses_another_grid_untouched(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"tokens{suffix}"
    assert tokenize(labelled_folder / "red", "-o", target).code == 0
    before = target.read_bytes()
    ended = tokenize(labelled_folder, "-o", target, "--resume", "--size", 24)
    assert (ended.code, ended.out) == (2, "")
    assert "4 x 4 tokens an image, but these settings give 6 x 6" in ended.err
    assert "--size" in ended.err
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


def test_tokenize_resume_refuses_lines_of_another_tokenizer_untouched(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    """Error lines and an incomplete one included, which a job that goes on does away with."""
    target = tmp_path / "tokens.jsonl"
    assert tokenize(labelled_folder / "red", "-o", target).code == 0
    lines = [json.loads(line) for line in target.read_text().splitlines()]
    others = [line | {"tokens": [(token + 1) % 16 for token in line["tokens"]]} for line in lines]
    others.insert(2, {"path": "gone.png", "error": "empty file"})
    target.write_text("".join(json.dumps(line) + "\n" for line in others) + '{"path": "cut')
    before = target.read_bytes()
    ended = tokenize(labelled_folder, "-o", target, "--resume")
    assert (ended.code, ended.out) == (2, ""), ended.err
    assert "was made by another tokenizer" in ended.err
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_tokenize_resume_refuses_another_tokenizer_untouched(
    tokenize: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    """The same run two steps earlier: as many codes, other weights."""
    target = tmp_path / f"tokens{suffix}"
    assert tokenize(labelled_folder / "red", "-o", target).code == 0
    before = target.read_bytes()
    earlier = tokenizer_run / "checkpoints" / "step-0000002"
    ended = tokenize(labelled_folder, "-o", target, "--resume", "--tokenizer", earlier)
    assert (ended.code, ended.out) == (2, "")
    assert "made by another tokenizer" in ended.err
    assert open_tokenizer(str(earlier)).sha256[:12] in ended.err
    assert target.read_bytes() == before


@pytest.fixture(scope="module")
def other_tokenizer(tmp_path_factory: pytest.TempPathFactory, labelled_folder: Path) -> Path:
    """As many codes and the grid of `tokenizer_run`, from another seed."""
    run = tmp_path_factory.mktemp("other") / "tokenizer"
    flags = {"recipe": "tiny", "vocab_size": CODES, "size": 16, "width": 8, "steps": 1, "batch_size": 8, "seed": 9}
    flags |= {"data": [str(labelled_folder)], "out": str(run), "device": "cpu", "workers": 0}
    train_tokenizer(resolve(TrainTokenizerConfig, flags).config)
    return run


def test_lines_of_another_tokenizer_are_not_gone_on_with(
    tokenize: Callable, other_tokenizer: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    """A line does not say its tokenizer, and these two have equal grids and codes."""
    target = tmp_path / "tokens.jsonl"
    assert tokenize(labelled_folder / "red", "-o", target).code == 0
    before = target.read_bytes()
    ended = tokenize(labelled_folder, "-o", target, "--resume", "--tokenizer", other_tokenizer)
    assert (ended.code, ended.out) == (2, "")
    assert "made by another tokenizer" in ended.err
    assert "--overwrite" in ended.err
    assert target.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == [target.name]
    ended = tokenize(labelled_folder, "-o", target, "--overwrite", "--tokenizer", other_tokenizer)
    assert ended.code == 0, ended.err


def test_lines_of_one_tokenizer_go_on_where_an_image_has_changed_since(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    data, target = shutil.copytree(labelled_folder, tmp_path / "data"), tmp_path / "tokens.jsonl"
    assert tokenize(data / "red", "-o", target).code == 0
    shutil.copy(data / "blue" / "00.jpg", data / "red" / "00.jpg")
    (data / "red" / "01.png").write_bytes(b"")
    ended = tokenize(data / "red", data / "blue", "-o", target, "--resume")
    assert ended.code == 0, ended.err
    assert "8 of 16 images are in the file already" in ended.err


def test_what_a_killed_job_left_beside_the_file_that_it_was_to_replace_goes(
    tokenize: Callable, picture: Callable, tmp_path: Path
) -> None:
    image, target = picture("data/a.png"), tmp_path / "tokens.jsonl"
    target.write_bytes(b"of value")

    def work() -> int:
        with closing(open_token_file(target, TokenKind((4, 4), CODES, ""), resume=False)) as file:
            file.add({"path": "a.png", "grid": GRID, "tokens": [0] * 16})
            os.kill(os.getpid(), signal.SIGKILL)
        return 0

    assert forked(work).code == -signal.SIGKILL
    alive, mine = tmp_path / f".tokens.jsonl.{os.getppid()}", tmp_path / ".tokens.jsonl.backup"
    alive.touch(), mine.touch()
    assert len(list(tmp_path.glob(".tokens.jsonl.*"))) == 3
    assert tokenize(image, "-o", target, "--overwrite").code == 0
    assert sorted(tmp_path.glob(".tokens.jsonl.*")) == sorted([alive, mine])
    assert [path for path, _ in read(target)] == [str(image)]


@pytest.mark.parametrize("suffix", FORMATS[1:3])
def test_archives_that_do_not_name_their_tokenizer_are_compared_by_their_tokens(
    tokenize: Callable, other_tokenizer: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"tokens{suffix}"
    with closing(open_token_file(target, TokenKind((4, 4), CODES, ""), resume=False)) as file:
        for document in tokenize(labelled_folder / "red").lines:
            file.add(document)
    ended = tokenize(labelled_folder, "-o", target, "--resume", "--tokenizer", other_tokenizer)
    assert (ended.code, ended.out) == (2, "")
    assert "made by another tokenizer" in ended.err
    assert tokenize(labelled_folder, "-o", target, "--resume").code == 0
    assert len(read(target)) == 24


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_resume_refuses_tokens_that_the_tokenizer_has_not(
    tokenize: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"tokens{suffix}"
    kind = TokenKind((4, 4), 8192, open_tokenizer(str(tokenizer_run)).sha256)
    with closing(open_token_file(target, kind, resume=False)) as file:
        file.add({"path": "a.png", "grid": GRID, "tokens": [*range(15), 8000]})
    ended = tokenize(labelled_folder, "-o", target, "--resume")
    assert (ended.code, ended.out) == (2, "")
    assert "holds token 8000, but this tokenizer's are 0 to 15" in ended.err
    assert read(target) == [("a.png", [*range(15), 8000])]


@pytest.mark.parametrize("suffix", FORMATS)
def test_tokenize_of_bad_images_alone_makes_a_file_without_tokens(
    tokenize: Callable, picture: Callable, tmp_path: Path, suffix: str
) -> None:
    bad = picture("data/a.png")
    whole = bad.read_bytes()
    bad.write_bytes(b"")
    target = tmp_path / f"tokens{suffix}"
    ended = tokenize(bad, "-o", target)
    assert (ended.code, ended.out) == (3, "")
    assert "1 of 1 image cannot be read" in ended.err
    if suffix == ".jsonl":
        assert set(json.loads(target.read_text())) == {"path", "error"}
    else:
        assert read(target) == []
    if suffix == ".npz":
        with np.load(target) as arrays:
            assert (arrays["tokens"].shape, arrays["tokens"].dtype) == ((0, 16), np.int32)
    bad.write_bytes(whole)
    assert tokenize(bad, "-o", target, "--resume").code == 0
    assert [path for path, _ in read(target)] == [str(bad)]


@pytest.mark.parametrize("suffix", FORMATS[1:])
def test_a_token_archive_is_not_held_in_memory(tmp_path: Path, suffix: str) -> None:
    kind, path = TokenKind((100, 100), CODES, "0" * 64), tmp_path / f"tokens{suffix}"
    file = open_token_file(path, kind, resume=False)
    document = {"path": "", "grid": [100, 100], "tokens": [3] * 10_000}
    tracemalloc.start()
    for number in range(50):
        file.add(document | {"path": str(number)})
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert held < 50 * 10_000 * 4 / 10
    file.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"tokens{suffix}"]
    with closing(open_token_file(path, kind, resume=True)) as again:
        assert len(again.held) == 50


def test_names_beyond_a_safetensors_header_are_a_tensor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, path = TokenKind((1, 2), CODES, "0" * 64), tmp_path / "tokens.safetensors"
    names = [f"{'long' * 10}-{number}.png" for number in range(100)]
    monkeypatch.setattr("beitcli.engine.io.token_archives._MOST_HEADER", 1000)
    with closing(open_token_file(path, kind, resume=False)) as file:
        for number, name in enumerate(names):
            file.add({"path": name, "grid": [1, 2], "tokens": [number % CODES, 3]})
    with safe_open(path, framework="numpy") as stored:
        assert set(stored.metadata()) == {"tokenizer"}
        assert json.loads(stored.get_tensor("paths").tobytes()) == names
        assert stored.get_tensor("tokens").tolist() == [[number % CODES, 3] for number in range(100)]
        assert stored.get_tensor("grid").tolist() == [1, 2]
    with closing(open_token_file(path, kind, resume=True)) as file:
        assert file.held == set(names)


def test_a_safetensors_header_is_measured_with_its_escapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind, path = TokenKind((1, 1), CODES, "0" * 64), tmp_path / "tokens.safetensors"
    monkeypatch.setattr("beitcli.engine.io.token_archives._MOST_HEADER", 2000)
    with closing(open_token_file(path, kind, resume=False)) as file:
        for number in range(100):
            file.add({"path": '"' * 9 + str(number), "grid": [1, 1], "tokens": [1]})
    assert int.from_bytes(path.read_bytes()[:8], "little") <= 2000


class Halt(Exception):
    """A stop in the middle of a job."""


@pytest.mark.parametrize("ending", [Halt, KeyboardInterrupt])
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_stopped_job_leaves_no_archive_and_goes_on(
    tokenize: Callable,
    tokenizer_run: Path,
    labelled_folder: Path,
    tmp_path: Path,
    suffix: str,
    ending: type[BaseException],
) -> None:
    target, whole, out = tmp_path / f"tokens{suffix}", tmp_path / f"whole{suffix}", tmp_path / "out"
    flags = {"inputs": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "output": str(target)}
    flags |= {"batch_size": 4, "workers": 0, "device": "cpu", "reconstruct": str(out)}

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "tokenize" and event.done >= 12:
            raise ending

    with pytest.raises(ending):
        list(engine_tokenize(resolve(TokenizeConfig, flags).config, stop))
    assert target.exists() == (suffix == ".jsonl")
    assert len(list(out.glob("*.png"))) == 2 * 12
    argv = [labelled_folder, "-o", target, "--reconstruct", out, "--batch-size", 4, "--workers", 0, "--device", "cpu"]
    assert tokenize(*argv).code == 2  # what is there is not replaced unasked
    ended = tokenize(*argv, "--resume")
    assert ended.code == 0, ended.err
    assert "12 of 24 images are in the file already" in ended.err
    assert tokenize(labelled_folder, "-o", whole).code == 0
    assert read(target) == read(whole)
    assert not list(tmp_path.glob("*.partial*"))
    assert len(list(out.glob("*.png"))) == 2 * 24
    assert not (out / ".beit-unfinished").exists()


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_a_stopped_job_was_to_replace_stays(
    tokenizer_run: Path, labelled_folder: Path, tmp_path: Path, suffix: str
) -> None:
    target = tmp_path / f"tokens{suffix}"
    target.write_bytes(b"of value")
    flags = {"inputs": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "output": str(target)}
    flags |= {"batch_size": 4, "workers": 0, "device": "cpu", "overwrite": True}

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "tokenize":
            raise Halt

    with pytest.raises(Halt):
        list(engine_tokenize(resolve(TokenizeConfig, flags).config, stop))
    assert target.read_bytes() == b"of value"


def test_pictures_without_tokens_of_a_killed_job_are_its_own_whatever_the_batch(
    tokenize: Callable, tokenizer_run: Path, labelled_folder: Path, tmp_path: Path
) -> None:
    """As of several processes that are killed within a batch: pictures are there, and no token of them."""
    target, out = tmp_path / "tokens.jsonl", tmp_path / "out"
    argv = ["-o", target, "--reconstruct", out, "--workers", 0, "--device", "cpu"]
    flags = {"inputs": [str(labelled_folder)], "tokenizer": str(tokenizer_run), "output": str(target)}
    flags |= {"batch_size": 4, "workers": 0, "device": "cpu", "reconstruct": str(out)}

    def stop(event: Event) -> None:
        if isinstance(event, Progress) and event.phase == "tokenize" and event.done >= 12:
            raise Halt

    with pytest.raises(Halt):
        list(engine_tokenize(resolve(TokenizeConfig, flags).config, stop))
    lines = target.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:5]))
    ended = tokenize(labelled_folder, *argv, "--resume", "--batch-size", 7)
    assert ended.code == 0, ended.err
    assert "5 of 24 images are in the file already" in ended.err
    assert len(list(out.glob("*.png"))) == 2 * 24


def test_resume_replaces_no_picture_of_another_job(tokenize: Callable, picture: Callable, tmp_path: Path) -> None:
    first, second, target = picture("in/a.png"), picture("in/b.png", seed=2), tmp_path / "tokens.npz"
    argv = ["-o", target, "--resume", "--reconstruct", tmp_path / "out"]
    assert tokenize(first, *argv).code == 0
    (tmp_path / "out" / "b-pair.png").write_bytes(b"of value")
    before = target.read_bytes()
    ended = tokenize(first, second, *argv)
    assert ended.code == 2
    assert "b-pair.png' exists already" in ended.err
    assert (tmp_path / "out" / "b-pair.png").read_bytes() == b"of value"
    assert target.read_bytes() == before
    assert not list(tmp_path.glob("*.partial*"))
    assert tokenize(first, second, *argv, "--map", tmp_path / "sheet.png").code == 2


@pytest.mark.parametrize("suffix", FORMATS)
def test_token_files_hold_names_that_are_no_text(tmp_path: Path, suffix: str) -> None:
    kind, names = TokenKind((1, 2), CODES, "0" * 64), ["a.png", os.fsdecode(b"\xff.png"), "\u00e9.png"]
    with closing(open_token_file(tmp_path / f"tokens{suffix}", kind, resume=False)) as file:
        for number, name in enumerate(names):
            file.add({"path": name, "grid": [1, 2], "tokens": [number, 3]})
    with closing(open_token_file(tmp_path / f"tokens{suffix}", kind, resume=True)) as file:
        assert file.held == set(names)


def test_parquet_tokens_come_in_row_groups_with_their_types(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("beitcli.engine.io.token_archives._ROW_GROUP", 4)
    with closing(open_token_file(tmp_path / "t.parquet", TokenKind((1, 2), CODES, "0" * 64), resume=False)) as file:
        for number in range(10):
            file.add({"path": f"{number}.png", "grid": [1, 2], "tokens": [number, 3]})
    stored = parquet.ParquetFile(tmp_path / "t.parquet")
    assert [stored.metadata.row_group(number).num_rows for number in range(3)] == [4, 4, 2]
    assert [str(field.type) for field in stored.schema_arrow] == ["string", *["list<element: int32>"] * 2]
    rows = [{"path": f"{number}.png", "grid": [1, 2], "tokens": [number, 3]} for number in range(10)]
    assert stored.read().to_pylist() == rows


@pytest.mark.parametrize("grids", [[[1, 2], [2, 1]], [[1, 3], [1, 3]], []])
def test_parquet_that_holds_no_tokens_of_one_grid_is_refused(tmp_path: Path, grids: list[list[int]]) -> None:
    rows = [{"path": "a", "grid": grid, "tokens": [1, 2]} for grid in grids] or [{"path": "a", "tokens": [1, 2]}]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    with pytest.raises(StorageError, match="no file of tokens"):
        open_token_file(tmp_path / "t.parquet", TokenKind((1, 2), CODES, "0" * 64), resume=True)


def test_token_lines_are_taken_up_without_holding_them(tmp_path: Path) -> None:
    target, kind = tmp_path / "tokens.jsonl", TokenKind((100, 100), CODES, "0" * 64)
    lines = [json.dumps({"path": str(n), "grid": [100, 100], "tokens": [n % CODES] * 10_000}) for n in range(50)]
    target.write_text("\n".join([lines[0], json.dumps({"path": "bad", "error": "empty"}), *lines[1:], lines[0][:99]]))
    tracemalloc.start()
    file = open_token_file(target, kind, resume=True)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    file.close()
    assert most < 0.5 * 50 * 10_000 * 8
    assert file.held == {str(number) for number in range(50)}
    assert target.read_text() == "\n".join(lines) + "\n"


# Precision


def test_tokenize_computes_in_fp32_unless_told_otherwise(
    tokenize: Callable, tokenizer_run: Path, labelled_folder: Path
) -> None:
    plain = tokenize(labelled_folder, "--size", 32)
    assert tokenize(labelled_folder, "--size", 32, "--precision", "fp32").out == plain.out
    tokenizer = open_tokenizer(str(tokenizer_run))
    short = tokenize(labelled_folder, "--size", 32, "--precision", "bf16", "--device", "cpu")
    with Image.open(plain.lines[0]["path"]) as image:
        transform = to_array(fit_center(image.convert("RGB"), 32, filter=Image.Resampling.LANCZOS))
    expected = tokenizer.in_precision("bf16").encode(torch.from_numpy(transform)[None])
    assert short.lines[0]["tokens"] == expected[0].tolist()
    stats = tokenize(labelled_folder, "--size", 32, "--precision", "bf16", "--stats").lines[0]
    assert 0 < stats["agreement"] <= 1  # told only where the tokens are not fp32's by definition


# Pictures, there and back


def test_decode_gives_the_pictures_of_reconstruct_to_the_pixel(
    tokenize: Callable, tokenizer_run: Path, beit: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    folder = labelled_folder / "red"
    tokens = tmp_path / "tokens.jsonl"
    assert tokenize(folder, "-o", tokens, "--reconstruct", tmp_path / "there").code == 0
    ended = tokenize("--decode", tokens, "-o", tmp_path / "back")
    assert ended.code == 0
    stems = [path.stem for path in sorted(folder.iterdir())]
    assert ended.lines == [
        {"path": str(path), "output": str(tmp_path / "back" / f"{path.stem}.png")} for path in sorted(folder.iterdir())
    ]
    assert {path.name for path in (tmp_path / "back").iterdir()} == {f"{stem}.png" for stem in stems}
    assert {path.name for path in (tmp_path / "there").iterdir()} == {
        *(f"{stem}.png" for stem in stems),
        *(f"{stem}-pair.png" for stem in stems),
    }
    for stem in stems:
        with (
            Image.open(tmp_path / "back" / f"{stem}.png") as back,
            Image.open(tmp_path / "there" / f"{stem}.png") as it,
        ):
            assert (back.size, back.mode) == ((16, 16), "RGB")
            assert back.tobytes() == it.tobytes()
    piped = tokenize("--decode", "-o", tmp_path / "piped", stdin=tokens.read_bytes())
    assert [Path(line["output"]).read_bytes() for line in piped.lines] == [
        Path(line["output"]).read_bytes() for line in ended.lines
    ]


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("../../x.png", "x.png"),
        ("/etc/passwd", "passwd.png"),
        ("..", "image.png"),
        ("", "image.png"),
        ("a/b/..", "image.png"),
        ("..\\..\\up.jpg", "up.png"),
        ("new\nline.jpg", "new_line.png"),
        ("nul\0byte.jpg", "nul_byte.png"),
        (".hidden", "hidden.png"),
    ],
)
def test_decode_never_leaves_its_folder(tokenize: Callable, tmp_path: Path, name: str, written: str) -> None:
    out = tmp_path / "deep" / "er" / "out"
    line = json.dumps({"path": name, "grid": [1, 2], "tokens": [0, 1]})
    ended = tokenize("--decode", "-o", out, stdin=line.encode() + b"\n")
    assert ended.code == 0
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()] == [
        Path("deep/er/out") / written
    ]
    with Image.open(out / written) as image:
        assert image.size == (8, 4)


def test_pictures_of_the_same_stem_are_numbered(tokenize: Callable, picture: Callable, tmp_path: Path) -> None:
    names = ["one/x.png", "two/x.jpg", "three/X.png", "four/x-2.png", "five/x-pair.png"]
    paths = [picture(f"data/{name}", seed=seed) for seed, name in enumerate(names)]
    ended = tokenize(*paths, "--reconstruct", tmp_path / "out")
    assert ended.code == 0
    written = [path.name.lower() for path in (tmp_path / "out").iterdir()]
    assert len(written) == len(set(written)) == 2 * len(paths)
    back = tokenize("--decode", "-o", tmp_path / "back", stdin=ended.out.encode())
    outputs = [Path(line["output"]).name.lower() for line in back.lines]
    assert outputs[:2] == ["x.png", "x-2.png"]
    assert len(set(outputs)) == len(paths)


def test_pictures_of_thousands_of_equal_stems_are_numbered_in_a_moment(tmp_path: Path) -> None:
    names = OutputNames(tmp_path, ".png", beside=("-pair",))
    before = time.perf_counter()
    paths = [names.path(f"{number}/{'Xx'[number % 2]}.png") for number in range(20_000)]
    assert time.perf_counter() - before < 5  # 170 s where each counts from 2 again
    assert paths[:3] == [tmp_path / name for name in ("X.png", "x-2.png", "X-3.png")]
    assert len({str(path).lower() for path in paths}) == 20_000


def test_reconstruct_keeps_the_pictures_of_an_earlier_part(
    tokenize: Callable, picture: Callable, tmp_path: Path
) -> None:
    first, second = picture("data/one/x.png", seed=1), picture("data/two/x.png", seed=2)
    argv = ["-o", tmp_path / "tokens.jsonl", "--resume", "--reconstruct", tmp_path / "out"]
    assert tokenize(first, *argv).code == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert tokenize(first, second, *argv).code == 0
    after = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}
    assert {name: after[name] for name in before} == before
    assert set(after) == {"x.png", "x-pair.png", "x-2.png", "x-2-pair.png"}


GOOD = {"path": "a.png", "grid": [1, 2], "tokens": [0, 1]}


@pytest.mark.parametrize(
    "line",
    [
        "{not json",
        "[1, 2]",
        "3",
        "null",
        json.dumps({"grid": [1, 2], "tokens": [0, 1]}),
        json.dumps(GOOD | {"path": 5}),
        json.dumps(GOOD | {"tokens": [0]}),
        json.dumps(GOOD | {"tokens": []}),
        json.dumps(GOOD | {"grid": [0, 0], "tokens": []}),
        json.dumps(GOOD | {"tokens": [0, -1]}),
        json.dumps(GOOD | {"tokens": [0, CODES]}),
        json.dumps(GOOD | {"tokens": [0, 10**30]}),
        json.dumps(GOOD | {"tokens": [0, 1.5]}),
        json.dumps(GOOD | {"tokens": [0, True]}),
        json.dumps(GOOD | {"tokens": [0, "1"]}),
        json.dumps(GOOD | {"tokens": "01"}),
        json.dumps(GOOD | {"tokens": None}),
        json.dumps(GOOD | {"grid": [2, 2]}),
        json.dumps(GOOD | {"grid": 2}),
        json.dumps(GOOD | {"grid": [2]}),
        json.dumps(GOOD | {"grid": [-1, -2]}),
        json.dumps({"path": "a.png", "tokens": [0, 1]}),
        json.dumps({"path": "a.png"}),
        "",
        "\udcff",
    ],
)
def test_decode_refuses_lines_that_are_no_tokens(tokenize: Callable, tmp_path: Path, line: str) -> None:
    lines = f"{json.dumps(GOOD)}\n{line}\n".encode(errors="surrogateescape")
    ended = tokenize("--decode", "-o", tmp_path / "out", stdin=lines)
    assert ended.code == 3, ended.err
    assert "beit tokenize" in ended.err or "tokenizer that made them" in ended.err
    assert len(ended.lines) == 1
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.png"]
    (tmp_path / "lines.jsonl").write_bytes(lines)
    assert tokenize("--decode", tmp_path / "lines.jsonl", "-o", tmp_path / "again").code == 3


def test_decode_passes_over_lines_of_bad_images(tokenize: Callable, tmp_path: Path) -> None:
    lines = [{"path": "b.png", "error": "empty file (0 bytes)"}, GOOD]
    ended = tokenize(
        "--decode", "-o", tmp_path / "out", stdin="".join(json.dumps(line) + "\n" for line in lines).encode()
    )
    assert ended.code == 0
    assert [line["path"] for line in ended.lines] == ["a.png"]


def test_token_lines_may_begin_with_a_byte_order_mark(tokenize: Callable, tmp_path: Path) -> None:
    lines = b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\n"
    (tmp_path / "lines.jsonl").write_bytes(lines)
    for number, (argv, stdin) in enumerate([((tmp_path / "lines.jsonl",), b""), ((), lines)]):
        ended = tokenize("--decode", *argv, "-o", tmp_path / f"out{number}", stdin=stdin)
        assert ended.code == 0, ended.err
        assert [line["path"] for line in ended.lines] == ["a.png"]


def test_decode_of_a_missing_file_is_refused(tokenize: Callable, tmp_path: Path) -> None:
    ended = tokenize("--decode", tmp_path / "absent.jsonl", "-o", tmp_path / "out")
    assert ended.code == 3
    assert "absent.jsonl" in ended.err


# Statistics


def test_stats_document_agrees_with_tokens_and_pictures(
    tokenize: Callable, labelled_folder: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(labelled_folder, tmp_path / "data")
    (data / "red" / "zero.png").write_bytes(b"")
    ended = tokenize(data, "--stats", "--reconstruct", tmp_path / "out", "--on-bad", "skip")
    (document,) = ended.lines
    assert ended.code == 0
    assert list(document) == [
        "images", "bad", "tokens_per_image", "vocab_size", "codes_used", "perplexity", "entropy_share",
        "commonest_share", "mae", "psnr", "psnr_image_mean", "psnr_patch_mean", "explained_variance", "mae_normalized",
        "verdict", "reason",
    ]  # fmt: skip
    assert (document["images"], document["bad"], document["vocab_size"]) == (24, 1, CODES)
    tokens = np.array([line["tokens"] for line in tokenize(labelled_folder).lines])
    shares = np.bincount(tokens.ravel(), minlength=CODES) / tokens.size
    assert document["codes_used"] == int((shares > 0).sum())
    used = shares[shares > 0]
    assert document["perplexity"] == pytest.approx(float(np.exp(-(used * np.log(used)).sum())), rel=1e-4)
    differences = []
    alone = tokenize(labelled_folder / "red", "--stats", "--reconstruct", tmp_path / "red").lines[0]
    for path in sorted((labelled_folder / "red").iterdir()):
        with Image.open(path) as image, Image.open(tmp_path / "red" / f"{path.stem}.png") as decoded:
            transform = to_array(fit_center(image.convert("RGB"), 16, filter=Image.Resampling.LANCZOS)).transpose(
                1, 2, 0
            )
            differences.append(transform.astype(float) / 255 - np.asarray(decoded, dtype=float) / 255)
    stacked = np.stack(differences)
    assert alone["mae"] == pytest.approx(np.abs(stacked).mean(), abs=2e-3)
    normalized = np.abs(stacked / 0.5).mean()  # of (pixel - 0.5) / 0.5, in [-1, 1]
    assert alone["mae_normalized"] == pytest.approx(normalized, abs=4e-3)
    assert alone["psnr"] == pytest.approx(-10 * np.log10((stacked**2).mean()), abs=0.1)


def test_stats_reports_bad_images_by_its_exit_code(tokenize: Callable, picture: Callable) -> None:
    good = picture("data/a.png")
    good.with_name("b.png").write_bytes(b"")
    ended = tokenize(good.parent, "--stats")
    assert ended.code == 3
    assert (ended.lines[0]["images"], ended.lines[0]["bad"]) == (1, 1)
