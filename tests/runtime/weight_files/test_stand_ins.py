"""Pickles that name more than tensors: harmless objects become inert, nothing foreign runs, whole modules are read."""

from __future__ import annotations

import argparse
import builtins
import datetime
import enum
import importlib
import os
import pickle
import subprocess
import types
import warnings
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from timm.models.beit import Beit
from torch import nn

from beitcli.errors import StorageError
from beitcli.runtime.weight_files.reader import read_header, read_tensors
from beitcli.runtime.weight_files.stand_ins import stand_in
from tests.helpers.foreign_models import PER_BLOCK

STATE = {"norm.weight": torch.arange(4.0)}


class Config(dict):  # type: ignore[type-arg]
    """Settings as a subclass of dict, as yacs, easydict and Lightning have them."""


class History(list):  # type: ignore[type-arg]
    """A log as a subclass of list."""


class Slots:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 3


class Phase(enum.Enum):
    TRAIN = 1


class Buffer:
    """A log buffer with arrays and methods, as mmengine's HistoryBuffer."""

    def __init__(self) -> None:
        self.history = np.arange(3.0)
        self.statistics = {"mean": np.mean}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "beside",
    [
        np.float64(81.2), np.float32(1e-3), np.int64(3), np.bool_(True), np.arange(3), Path("x"), Buffer(), Slots(),
        Config(lr=1e-3, inner=Config(a=np.float64(1))), History([1, 2]), Phase.TRAIN, defaultdict(list, a=[1]),
        datetime.datetime(2024, 1, 2), types.SimpleNamespace(a=1), argparse.Namespace(out=Path("x"), lr=np.float32(1)),
        torch.nn.functional.gelu, slice(1, 2), range(3), frozenset({1}),
    ],
    ids=lambda each: type(each).__name__,
)  # fmt: skip
def test_objects_beside_the_weights_are_inert(tmp_path: Path, beside: object, legacy: bool) -> None:
    content = {"model": STATE, "epoch": 3, "beside": beside, "nested": {"again": [beside]}}
    torch.save(content, tmp_path / "a.pth", _use_new_zipfile_serialization=not legacy)
    header = read_header(tmp_path / "a.pth")
    assert header.shapes == {"norm.weight": (4,)}
    assert header.about["epoch"] == 3
    assert torch.equal(read_tensors(tmp_path / "a.pth")["norm.weight"], STATE["norm.weight"])


class Call:
    """Calls a function when it is unpickled; with `inner`, as an argument of another call."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.made = function, arguments

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return self.made


def write(canary: str) -> None:
    Path(canary).write_text("ran")


class Opener:
    """A class whose construction and state leave a trace."""

    def __init__(self, canary: str = "") -> None:
        self.canary = canary

    def __setstate__(self, state: dict[str, str]) -> None:
        write(state["canary"])


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("attack", "named"),
    [
        (lambda canary: Call(os.system, f"touch '{canary}'"), "system"),
        (lambda canary: Call(eval, f"open({canary!r}, 'w')"), "eval"),
        (lambda canary: Call(exec, f"open({canary!r}, 'w')"), "exec"),
        (lambda canary: Call(open, canary, "w"), "open"),
        (lambda canary: Call(subprocess.Popen, ["touch", canary]), "Popen"),
        (lambda canary: Call(importlib.import_module, "antigravity"), "import_module"),
        (lambda canary: Call(builtins.__import__, "os"), "__import__"),
        (lambda canary: Call(write, canary), "write"),
        (lambda canary: Call(torch.hub.load, "a/b", "c"), "load"),
        (lambda canary: Call(timm.create_model, "beit_base_patch16_224"), "create_model"),
        (lambda canary: Call(torch.storage._load_from_bytes, pickle.dumps(Call(write, canary))), "_load_from_bytes"),
        (lambda canary: Call(map, write, [canary]), "map"),
        (lambda canary: Config(a=Call(os.system, f"touch '{canary}'")), "system"),
        (lambda canary: argparse.Namespace(a=[np.float64(1), Call(eval, "1")]), "eval"),
    ],
    ids=lambda each: each if isinstance(each, str) else "",
)
def test_calls_are_refused_and_never_run(tmp_path: Path, attack: Any, named: str, legacy: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    torch.save({"model": STATE, "x": attack(str(canary))}, path, _use_new_zipfile_serialization=not legacy)
    for read in (read_header, read_tensors):
        with pytest.raises(StorageError, match=rf"asks for `\S*{named}`"):
            read(path)
    assert not canary.exists()


@pytest.mark.parametrize("legacy", [False, True])
def test_classes_are_neither_made_nor_given_their_state(tmp_path: Path, legacy: bool) -> None:
    canary, path = tmp_path / "canary", tmp_path / "a.pth"
    torch.save({"model": STATE, "x": Opener(str(canary))}, path, _use_new_zipfile_serialization=not legacy)
    assert read_header(path).shapes == {"norm.weight": (4,)}
    read_tensors(path)
    assert not canary.exists()
    torch.load(path, weights_only=False)
    assert canary.exists()  # so it would have left a trace


def test_a_class_reached_through_an_attribute_is_not_called(tmp_path: Path) -> None:
    """`getattr`, which pickles of enums name, gives a stand-in, which a pickle cannot call."""
    reach = Call(getattr, Opener, "__init__")
    pickled = {"model": STATE, "x": reach}
    torch.save(pickled, tmp_path / "a.pth")
    assert read_header(tmp_path / "a.pth").shapes == {"norm.weight": (4,)}
    made = stand_in("builtins.getattr")
    assert made is not None
    assert not callable(made(Opener, "__init__"))


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "io.StringIO", "shutil.rmtree", "torch.hub.load", "x"])
def test_names_of_the_standard_library_that_do_more_have_no_stand_in(name: str) -> None:
    assert stand_in(name) is None


@pytest.mark.parametrize("wrap", [lambda model: model, lambda model: {"model": model, "epoch": 3}, nn.DataParallel])
def test_whole_module_is_read_as_its_state_dict(tmp_path: Path, wrap: Any) -> None:
    model = Beit(**PER_BLOCK)
    torch.save(wrap(model), tmp_path / "model.pt")
    expected = model.state_dict()
    found = read_tensors(tmp_path / "model.pt")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert read_header(tmp_path / "model.pt").shapes == {name: tuple(each.shape) for name, each in expected.items()}


def test_whole_module_in_the_old_container_names_the_way_to_weights(tmp_path: Path) -> None:
    with warnings.catch_warnings(action="ignore"):  # of sources that cannot be stored
        torch.save(Beit(**PER_BLOCK), tmp_path / "model.pt", _use_new_zipfile_serialization=False)
    with pytest.raises(StorageError, match="a whole pickled module") as caught:
        read_header(tmp_path / "model.pt")
    assert "state_dict()" in caught.value.hint


# --- where a state dict lies


@pytest.mark.parametrize(
    "wrap",
    [lambda s, k=key: {k: s, "epoch": 1} for key in
     ("model_state_dict", "net", "ema", "network", "params", "backbone", "weights_only", "student", "G")]
    + [lambda s: {"model": {"state_dict": s}}, lambda s: {"checkpoint": {"model": OrderedDict(s)}},
       lambda s: [s, {"lr": 1}], lambda s: (s, 3), lambda s: {"epoch": torch.tensor(3), "net": s},
       lambda s: {"net": s, "optimizer": {"state": {0: {"exp_avg": s["norm.weight"]}}, "param_groups": [{}]}},
       lambda s: {"net": s, "loss": {"weight": torch.ones(3)}, "scaler": {"_scale": torch.ones(1)}}],
)  # fmt: skip
def test_the_only_network_is_found_under_any_key(tmp_path: Path, wrap: Any) -> None:
    state = {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2), "norm.weight": torch.ones(4)}
    torch.save(wrap(state), tmp_path / "a.pth")
    assert read_tensors(tmp_path / "a.pth").keys() == state.keys()
    assert read_header(tmp_path / "a.pth").shapes.keys() == state.keys()


def test_several_networks_without_a_known_key_are_named(tmp_path: Path) -> None:
    state = {"patch_embed.proj.weight": torch.ones(4, 3, 2, 2)}
    torch.save({"first": state, "second": {**state, "a": torch.ones(1)}}, tmp_path / "a.pth")
    with pytest.raises(StorageError, match="2 state dicts, under 'first' and 'second'") as caught:
        read_header(tmp_path / "a.pth")
    assert "a.pth#second'" in caught.value.hint
    assert "a" in read_tensors(tmp_path / "a.pth", "second")


# --- other formats, by name


def script(path: Path) -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(nn.Linear(2, 2), (torch.ones(1, 2),)), path.with_suffix(".pt2"))
    path.with_suffix(".pt2").rename(path)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "said", "way"),
    [
        (script, "TorchScript program", "torch.jit.load"),
        (exported, "torch.export", "torch.export.load"),
        (lambda path: path.write_bytes(b"\x08\x0a\x12\x07pytorch\x1a\x052.14.1:\x9c"), "ONNX model", "to_array"),
        (lambda path: path.write_bytes(b"GGUF\x03\0\0\0" + bytes(64)), "GGUF", "made from"),
        (lambda path: path.write_bytes(b"\x82\xaaembeddings\x81\xa1a\xc0"), "msgpack", "from_flax"),
        (lambda path: path.write_bytes(b"\x1c\0\0\0TFL3" + bytes(40)), "TensorFlow Lite", "made from"),
        (lambda path: np.savez(path.open("wb"), a=np.ones(3)), "NumPy arrays", "np.load"),
        (lambda path: path.write_bytes(pickle.dumps({"model": {"a": np.ones(3)}}, 2)), "NumPy arrays", "as_tensor"),
        (lambda path: path.write_bytes(pickle.dumps({"model": {"a": np.ones(3)}}, 4)), "NumPy arrays", "as_tensor"),
        (lambda path: torch.save({"a": np.ones(3)}, path), "NumPy arrays", "from_numpy"),
        (lambda path: torch.save(torch.optim.AdamW([torch.ones(2)]).state_dict(), path), "optimizer", "beside it"),
    ],
)
def test_other_formats_are_named_with_the_way_to_weights(tmp_path: Path, make: Any, said: str, way: str) -> None:
    path = tmp_path / "weights"
    make(path)
    for read in (read_header, read_tensors):
        with pytest.raises(StorageError) as caught:
            read(path)
        assert said in caught.value.message
        assert way in caught.value.hint
        assert "ownload it again" not in caught.value.hint
