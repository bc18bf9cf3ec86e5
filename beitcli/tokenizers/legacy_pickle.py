"""Reads tensors from pickled modules, as OpenAI released DALL-E's, without executing code that the file names.

Each class that such a file may name is replaced by an inert class that only stores the state; all other names are
refused. torch has two containers: a zip archive, read by `guarded_load` (`weights_only` with the inert class), and
before torch 1.6 a sequence of pickles followed by the bytes of the tensors. `weights_only` does not support modules in
the old one ("Only persistent_load of storage is allowed"), so it is read here, with replacements for torch's functions.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from beitcli.errors import StorageError
from beitcli.runtime.storage.regular_files import open_regular
from beitcli.runtime.weight_files.file_sniffing import one_line
from beitcli.runtime.weight_files.safe_unpickling import guarded_load

OLD_CONTAINER = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled magic number at its start

_AGAIN = "Download it again, from who published it."

CLASSES = (
    "dall_e.encoder.Encoder",
    "dall_e.encoder.EncoderBlock",
    "dall_e.decoder.Decoder",
    "dall_e.decoder.DecoderBlock",
    "dall_e.utils.Conv2d",
    "torch.nn.modules.activation.ReLU",
    "torch.nn.modules.container.Sequential",
    "torch.nn.modules.conv.Conv2d",
    "torch.nn.modules.linear.Identity",
    "torch.nn.modules.pooling.MaxPool2d",
    "torch.nn.modules.upsampling.Upsample",
)


class Inert:
    """Replaces every class in the file; only stores the state."""

    def __init__(self, *arguments: object) -> None:
        self.state: dict[str, Any] = {}

    def __setstate__(self, state: object) -> None:
        self.state = state if isinstance(state, dict) else {}


def read_pickled(path: Path) -> dict[str, Tensor] | None:
    """Reads the state dict of a pickled module; None if the file is something else.

    Raises:
        StorageError: The pickle names anything else, or is damaged.
    """
    try:
        with open_regular(path) as file:
            head = file.read(len(OLD_CONTAINER))
    except OSError:
        return None  # the next reader reports the reason
    if head == OLD_CONTAINER:
        loaded = _read_old(path)
    elif head.startswith(b"PK\x03\x04"):
        loaded = guarded_load(path, [(Inert, name) for name in CLASSES], mapped=True)
    else:
        return None
    if not isinstance(loaded, Inert):
        return None
    found = _parameters(loaded)
    for name, tensor in found.items():
        if tensor.nbytes > tensor.untyped_storage().nbytes():
            raise StorageError(f"'{path}' is damaged: {name} is larger than what is stored of it.", _AGAIN)
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def _part(module: Inert, name: str) -> dict[str, Any]:
    """Returns `_parameters` or `_modules` of a module; empty if the file has no such dict."""
    state = vars(module).get("state")
    part = state.get(name) if isinstance(state, dict) else None
    return part if isinstance(part, dict) else {}


def _parameters(root: Inert) -> dict[str, Tensor]:
    """Collects parameters by dotted name; visits each module once, so that cyclic references do not loop forever."""
    found: dict[str, Tensor] = {}
    waiting, seen = [("", root)], {id(root)}
    while waiting:
        prefix, module = waiting.pop()
        for name, tensor in _part(module, "_parameters").items():
            if isinstance(tensor, Tensor):
                found[f"{prefix}{name}"] = tensor
        for name, child in _part(module, "_modules").items():
            if isinstance(child, Inert) and id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{prefix}{name}.", child))
    return found


def _read_old(path: Path) -> Any:
    with path.open("rb") as file:
        try:
            return _OldContainer(file, path.stat().st_size).read()
        except _AskedFor as error:
            raise StorageError(
                f"'{path}' is not loaded: its pickle asks for `{one_line(str(error))}`, which is no tensor and could "
                "run anything.",
                _AGAIN,
            ) from None
        except Exception:  # a damaged pickle raises anything
            raise StorageError(f"'{path}' is damaged or cut short.", _AGAIN) from None


class _AskedFor(Exception):
    """The pickle names something that weights do not need."""


class _OldContainer:
    """Old container: magic number, version, system information, object, storage keys; then the bytes of the storages.

    Attributes:
        storages: Flat tensors by key, allocated first, then filled from the file.
    """

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file = file
        self.left = size
        self.storages: dict[Any, Tensor] = {}

    def read(self) -> Any:
        for _ in range(3):
            _Unpickler(self).load()
        found = _Unpickler(self).load()
        for key in _Unpickler(self).load():
            storage = self.storages[key]
            if int.from_bytes(self.file.read(8), "little") != len(storage):
                raise EOFError
            content = bytearray(self.file.read(storage.nbytes))
            if len(content) != storage.nbytes:
                raise EOFError
            storage.copy_(torch.frombuffer(content, dtype=storage.dtype))
        return found

    def storage(self, dtype: torch.dtype, key: Any, numel: int) -> Tensor:
        if key not in self.storages:
            self.left -= numel * dtype.itemsize
            if self.left < 0:
                raise EOFError  # more than the file can hold
            self.storages[key] = torch.empty(numel, dtype=dtype)
        return self.storages[key]


class _Unpickler(pickle._Unpickler):
    """Unpickler that accepts only the names in `CLASSES` and those of tensors."""

    def __init__(self, container: _OldContainer) -> None:
        super().__init__(container.file, encoding="latin1")
        self.container = container

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full in CLASSES or full == "torch.device":
            return type("Inert", (Inert,), {})  # a new class, because the file may set attributes on it
        if full not in _KNOWN:
            raise _AskedFor(full)
        return _KNOWN[full]

    def persistent_load(self, saved: Any) -> Any:
        """Resolves ("module", class, its file, its source) or ("storage", dtype, key, device, numel, view)."""
        if saved[0] == "module":
            return saved[1]
        kind, dtype, key, _, numel, transform = saved
        if kind != "storage" or not isinstance(dtype, torch.dtype) or transform is not None:
            raise pickle.UnpicklingError
        return self.container.storage(dtype, key, numel)


def _tensor(storage: Tensor, offset: int, size: tuple[int, ...], stride: tuple[int, ...], *_: object) -> Tensor:
    return storage.as_strided(size, stride, offset)


def _data(tensor: Tensor, *_: object) -> Tensor:
    return tensor


_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "builtins.set": set,
    "__builtin__.set": set,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _data,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.DoubleStorage": torch.float64,
    "torch.cuda.FloatStorage": torch.float32,
    "torch.cuda.HalfStorage": torch.float16,
}
