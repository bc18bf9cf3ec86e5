"""Inputs that a fuzzer found, or that have the same cause: each is read, or refused with a reason, by its reader.

The fuzzer is `benchmarks/fuzz.py`.
"""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from beitcli.data.caches.feature_cache import Features, FeatureWriter, load_features
from beitcli.data.sources.open_data import open_data
from beitcli.engine.export_card import _is_measured
from beitcli.engine.segmentation.dataset import read_names
from beitcli.errors import DataError, StorageError, UsageError
from beitcli.models.checkpoints.foreign_folders import newest_weights
from beitcli.models.checkpoints.locate import WEIGHTS
from beitcli.models.checkpoints.open import open_model
from beitcli.models.checkpoints.timm_references import arguments_in
from beitcli.runtime.distributed.rank_env import rank_info_from_env
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


def test_a_shard_s_class_of_many_digits_is_a_name(tmp_path: Path) -> None:
    picture = save_picture(tmp_path / "a.png", (1, 2, 3), 0).read_bytes()
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for name, content in (
            ("0.png", picture),
            ("0.cls", MANY_DIGITS.encode()),
            ("1.png", picture),
            ("1.cls", b"07"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    assert open_data([str(tmp_path / "a.tar")], labelled=True).classes == ("7", MANY_DIGITS)


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
