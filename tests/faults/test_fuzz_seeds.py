"""Inputs that a fuzzer found, or that have the same cause: each is read, or refused with a reason, by its reader.

The fuzzer is `benchmarks/fuzz.py`.
"""

from __future__ import annotations

import io
import json
import threading
import zlib
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import save_file

from beitcli.config.pretrain import PretrainConfig
from beitcli.config.resolve import resolve
from beitcli.data.caches.feature_cache import Features, FeatureWriter, load_features
from beitcli.data.sources.open_data import open_data
from beitcli.engine.export_card import _is_measured
from beitcli.engine.io.token_files import open_token_file
from beitcli.engine.io.token_lines import TokenKind
from beitcli.engine.segmentation.dataset import read_names
from beitcli.engine.trainer.trainer_state import stored_progress
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.checkpoints.foreign_folders import newest_weights
from beitcli.models.checkpoints.locate import WEIGHTS
from beitcli.models.checkpoints.open import open_model
from beitcli.models.checkpoints.timm_references import arguments_in
from beitcli.runtime.distributed.rank_env import rank_info_from_env
from beitcli.runtime.hub.client import Listing, list_files
from beitcli.runtime.storage.checkpoint import CheckpointFolder
from beitcli.runtime.weight_files.reader import read_header
from tests.conftest import save_picture

pytestmark = pytest.mark.faults

MANY_DIGITS = "9" * 5000  # more than Python converts
DEEP = b"[" * 100_000


# Numbers of more digits than Python converts


def test_a_list_s_classes_of_many_digits_are_names(tmp_path: Path) -> None:
    save_picture(tmp_path / "a.png", (1, 2, 3), 0)
    (tmp_path / "list.tsv").write_text(f"a.png\t7\na.png\t{MANY_DIGITS}\n")
    source = open_data([str(tmp_path / "list.tsv")], labelled=True)
    assert source.classes == ("7", MANY_DIGITS)


def test_a_git_lfs_pointer_of_many_digits_is_called_one(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize {MANY_DIGITS}\n")
    with pytest.raises(StorageError, match="Git LFS pointer"):
        read_header(path)


def test_a_block_s_number_of_many_digits_is_refused(tmp_path: Path) -> None:
    names = [f"blocks.{MANY_DIGITS}.attn.qkv.weight", f"blocks.{MANY_DIGITS}.gamma_1", "patch_embed.proj.weight"]
    save_file(
        {name: torch.zeros(3, 3, 2, 2) for name in (*names, "cls_token", "norm.weight")}, tmp_path / "a.safetensors"
    )
    with pytest.raises(StorageError):
        open_model(str(tmp_path / "a.safetensors"))


@pytest.mark.parametrize("tasks", [f"{MANY_DIGITS}(x2)", "1(x999999999),3", "4(x2),3"])
def test_slurm_s_counts_of_tasks_take_no_memory(tasks: str) -> None:
    variables = {
        "SLURM_PROCID": "1", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "5", "SLURM_STEP_NODELIST": "a,b",
        "SLURM_NODEID": "1", "SLURM_STEP_TASKS_PER_NODE": tasks,
    }  # fmt: skip
    place = rank_info_from_env(variables)
    assert place is not None
    assert place.local_size == {"1": 1, "4": 4, "9": 999_999_999}[tasks[0]]


# Numbers that are not finite


@pytest.mark.parametrize("cell", ["1e39", "-4e38", "nan", "inf", "1e999"])
def test_a_table_s_number_beyond_its_type_is_refused(tmp_path: Path, cell: str) -> None:
    (tmp_path / "table.csv").write_text(f"path,cat\na.png,1\nb.png,{cell}\n")
    with pytest.raises(DataError, match="Row 3"):
        open_data([str(tmp_path / "table.csv")], vectors=True)


def test_a_log_s_number_that_is_none_is_left_out_of_a_card() -> None:
    assert [_is_measured(value) for value in (0.5, 1, float("nan"), float("inf"), 10**400, "0.5", None)] == [
        True, True, False, False, False, False, False,
    ]  # fmt: skip


@pytest.mark.parametrize("field", ["seconds", "images_per_second", "micro_batch"])
@pytest.mark.parametrize("value", ["1e999", "NaN", "1" + "0" * 400])
def test_a_state_of_training_holds_finite_numbers(tmp_path: Path, field: str, value: str) -> None:
    folder = tmp_path / "step-0000003"
    folder.mkdir()
    state = {"step": 3, "seconds": 1.5, "images_per_second": 2.0, "figures": None, "data": "x", "bad": []}
    (folder / "trainer.json").write_text(json.dumps(state))
    assert stored_progress(CheckpointFolder(folder)) == state
    text = json.dumps(state | {field: "HERE"}).replace('"HERE"', value)
    (folder / "trainer.json").write_text(text)
    with pytest.raises(StorageError, match=field):
        stored_progress(CheckpointFolder(folder))


# Settings


@pytest.mark.parametrize(
    "text",
    [
        f"steps = {MANY_DIGITS}",
        f"steps = 0x{'f' * 5000}",
        f"data = [[0x{'f' * 5000}]]",
        "steps = 0x8000000000000000",
        "steps" + ".a" * 3000 + " = 1",  # dotted keys nest without nesting the parser
        "steps = " + "[" * 3000,
    ],
)
def test_settings_that_cannot_even_be_printed_are_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    with pytest.raises(UsageError):
        resolve(PretrainConfig, {"config": str(tmp_path / "config.toml")})


# Parquet


def test_damaged_pages_of_numbers_are_named(tmp_path: Path) -> None:
    """Pages of labels and of images are read elsewhere. Each byte of the page's header in turn."""
    path = tmp_path / "rows.parquet"
    numbers = pa.array([1.5, 2.5, 3.5], pa.float64())
    pq.write_table(pa.table({"image": [b"x"] * 3, "cat": numbers}), path, compression="none", use_dictionary=False)
    content = path.read_bytes()
    first = content.index(np.float64(3.5).tobytes())
    refusals = []
    for at in range(first - 30, first):
        path.write_bytes(content[:at] + b"\x7f" + content[at + 1 :])
        try:
            open_data([str(path)], vectors=True)
        except DataError as error:
            refusals.append(error.message)
    assert len(refusals) > 10
    assert all("cannot be read as parquet" in said or "no number for cat" in said for said in refusals)


@pytest.mark.parametrize("value", [1e39, float("nan"), None])
def test_a_number_of_parquet_beyond_its_type_is_refused(tmp_path: Path, value: float | None) -> None:
    numbers = pa.array([1.0, value], pa.float64())
    pq.write_table(pa.table({"image": [b"x"] * 2, "cat": numbers}), tmp_path / "rows.parquet")
    with pytest.raises(DataError, match=r"Row 1 of .* has no number for cat"):
        open_data([str(tmp_path / "rows.parquet")], vectors=True)


# Files of tokens


@pytest.mark.parametrize(
    "change", [{"tokens": np.full((2, 4), -1, np.int32)}, {"tokenizer": 5}, {"tokenizer": None}, {}], ids=str
)
def test_tokens_below_zero_and_odd_tokenizers_are_refused(tmp_path: Path, change: dict[str, Any]) -> None:
    """Of a parquet file, whose metadata may hold any JSON."""
    tokens = change.get("tokens", np.zeros((2, 4), np.int32))
    about = {"tokenizer": change.get("tokenizer", "a" * 64), "grid": [2, 2]}
    columns = {"path": ["a", "b"], "grid": [[2, 2]] * 2, "tokens": tokens.tolist()}
    table = pa.table(columns).replace_schema_metadata({"beit": json.dumps(about)})
    pq.write_table(table, tmp_path / "tokens.parquet")
    kind = TokenKind((2, 2), 16, "a" * 64)
    if change.get("tokenizer", "") is None or not change:
        file = open_token_file(tmp_path / "tokens.parquet", kind, resume=True)
        file.close(done=False)
        assert file.held == {"a", "b"}
        return
    with pytest.raises(StorageError, match="no file of tokens"):
        open_token_file(tmp_path / "tokens.parquet", kind, resume=True)


# Pickles


def test_a_pickle_that_holds_one_dict_many_times_is_refused_soon(tmp_path: Path) -> None:
    """64 kB that would be looked at four billion times."""
    content: dict[str, Any] = {}
    for _ in range(3):
        content = {f"{number}": content for number in range(1600)}
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(StorageError, match="entries within one another"):
        read_header(tmp_path / "a.pth")


# What a hub answers


class _Answer(BaseHTTPRequestHandler):
    body = b""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def answering(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[_Answer]]:
    """A hub on this machine, which answers everything with `body`."""
    answer = type("Answer", (_Answer,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answer)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path / "cache"))
    yield answer
    server.shutdown()
    server.server_close()


COMMIT = "0123456789abcdef" * 2 + "01234567"


def _listed(**changes: Any) -> bytes:
    file = {"rfilename": "a.parquet", "size": 5_000_000, "blobId": "b"} | changes
    return json.dumps({"id": "o/n", "sha": COMMIT, "siblings": [file]}).encode()


def test_a_list_of_the_hub_is_read(answering: type[_Answer]) -> None:
    answering.body = _listed()
    listing = list_files("datasets/o/n")
    assert listing == Listing(COMMIT, {"a.parquet": 5_000_000}, {"a.parquet": "b"})


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":' * 100_000,
        _listed(size="many"),
        _listed(size=-1),
        _listed(size=1.5),
        _listed(size=True),
        _listed(rfilename=7),
        _listed(lfs=[1]),
        b"[]",
        b"null",
    ],
    ids=lambda body: body[:60],
)
def test_a_list_of_the_hub_that_is_none_is_refused(answering: type[_Answer], body: bytes) -> None:
    answering.body = body
    with pytest.raises(StorageError):
        list_files("datasets/o/n")


@pytest.mark.parametrize(
    "kept",
    [
        DEEP,
        b"[]",
        b'{"commit": "main", "sizes": {}}',
        json.dumps({"commit": COMMIT, "sizes": {"a": "b"}}).encode(),
        json.dumps({"commit": COMMIT, "sizes": ["a"]}).encode(),
    ],
)
def test_a_kept_list_that_is_none_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bytes) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("BEIT_CACHE_DIR", str(tmp_path))
    folder = tmp_path / "listings"
    folder.mkdir()
    (folder / "datasets--o--n--main.json").write_bytes(json.dumps({"commit": COMMIT, "sizes": {"a": 5}}).encode())
    assert list_files("datasets/o/n") == Listing(COMMIT, {"a": 5})
    (folder / "datasets--o--n--main.json").write_bytes(kept)
    with pytest.raises(StorageError, match="not in the cache"):
        list_files("datasets/o/n")


# Long names and long files


def test_a_long_name_in_last_checkpoint_names_nothing(tmp_path: Path) -> None:
    (tmp_path / "last_checkpoint").write_text("a" * 3000)
    assert newest_weights(tmp_path, WEIGHTS) is None


def test_a_model_of_a_long_name_is_refused(beit: Callable) -> None:
    ended = beit("inspect", "a" * 3000)
    assert ended.code == 4
    assert "takes no name that long" in " ".join(ended.err.split())


def test_many_names_of_classes_are_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(300_000))))  # by pairs it would take hours
    with pytest.raises(UsageError, match="names 300000 classes"):
        read_names(str(tmp_path / "names.txt"))


def test_many_columns_of_a_table_are_read_in_linear_time(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(",".join(["path", *map(str, range(200_000)), "7"]) + "\n")
    with pytest.raises(DataError, match="two columns '7'"):
        open_data([str(tmp_path / "table.csv")], vectors=True)


# Deep nesting


def test_an_argument_of_a_model_that_is_nested_deeply_is_text() -> None:
    assert arguments_in(f"timm/x@random,a={DEEP.decode()}") == {"a": DEEP.decode()}


# Caches that are sealed, by whoever could write there


@pytest.fixture
def features(tmp_path: Path) -> tuple[Path, Callable[[dict[str, bytes]], Features | None]]:
    """The folder of a cache of three images, and what is loaded of it with other files, their checksums made right."""
    about: dict[str, Any] = {"weights": "x"}
    with FeatureWriter(tmp_path, about, [1], 3, 2) as writer:
        writer.add(np.ones((1, 3, 2), np.float32), np.arange(3), [0, 1, 2], [])
        writer.finish()

    def load(files: dict[str, bytes]) -> Features | None:
        document = json.loads((writer.final / "about.json").read_text())
        for name, content in files.items():
            (writer.final / name).write_bytes(content)
            document["crc32"][name] = zlib.crc32(content)
        if "about.json" not in files:
            (writer.final / "about.json").write_text(json.dumps(document))
        return load_features(tmp_path, about, [1])

    return writer.final, load


def _npy(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def test_whole_features_are_loaded(features: tuple[Path, Callable]) -> None:
    found = features[1]({})
    assert found is not None
    assert len(found) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("about.json", DEEP),
        ("about.json", b"[]"),
        ("labels.npy", b""),
        ("labels.npy", b"PK\x05\x06" + bytes(18)),  # an empty zip archive, which numpy opens
        ("labels.npy", _npy(np.arange(2))),
        ("labels.npy", _npy(np.zeros(3))),
        ("rows.npy", _npy(np.array([0, 1, 5]))),
        ("rows.npy", _npy(np.array([-1, 0, 1]))),
        ("rows.npy", _npy(np.array([[0]]))),
        ("layer-01.npy", _npy(np.zeros((2, 2), np.float32))),
        ("layer-01.npy", _npy(np.zeros(3, np.float32))),
        ("layer-01.npy", _npy(np.zeros((3, 2)))),
    ],
)
def test_features_that_do_not_fit_together_are_computed_again(
    features: tuple[Path, Callable], name: str, content: bytes
) -> None:
    assert features[1]({name: content}) is None
