"""Reads published weights: safetensors, torch zip files (`.pth`, `.pt`, `.bin`, `.pkl`) and legacy torch files.

The container is recognized by its content, not by the file name. `read_header` takes milliseconds for any file size;
for safetensors it does not import torch, which takes seconds.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from beitcli.config.nearest import nearest
from beitcli.errors import StorageError, UsageError
from beitcli.runtime.storage.safe_json import parse_json
from beitcli.runtime.weight_files.file_sniffing import HEAD_BYTES, one_line, sniff, sniff_magic

if TYPE_CHECKING:
    import torch

Container = Literal["safetensors", "torch"]

_Entry = TypeVar("_Entry")
_AGAIN = "Download it again."
_PREFIXES = ("module.", "_orig_mod.")  # DistributedDataParallel, torch.compile
_HEADER_LIMIT = 100_000_000  # bytes; safetensors itself refuses longer ones
_ALLOWED = ((argparse.Namespace, "argparse.Namespace"),)  # the `args` of BEiT's own checkpoints


@dataclass(frozen=True)
class WeightFile:
    """Header of a weights file; tensor data is not read.

    Attributes:
        shapes: Shapes of the state dict, unwrapped.
        about: Plain values beside the state dict: metadata of safetensors; for a torch file the plain top-level values,
            `args`, the training settings, and `meta`, what mmseg notes (with its `dataset_meta`).
        size: Size of the file in bytes.
        part: What the user named of the file: a state dict, or a prefix in it; empty if nothing.
        key: Dotted key of the state dict in a torch file; empty if it is the whole file.
        others: Keys of the other state dicts in it.
    """

    path: Path
    container: Container
    shapes: dict[str, tuple[int, ...]]
    about: dict[str, Any]
    size: int
    part: str = ""
    key: str = ""
    others: tuple[str, ...] = ()


def read_header(path: Path, part: str = "") -> WeightFile:
    """Reads keys, shapes and metadata.

    Args:
        part: Which state dict is meant, of several.

    Raises:
        UsageError: It is a folder, or no regular file.
        StorageError: It is missing, cannot be read, is damaged, or is not a weights file.
    """
    container, size = _container(path)
    if container == "safetensors":
        shapes, about = _safetensors_header(path, size)
        return WeightFile(path, container, _without_prefix(shapes), about, size, part)
    from beitcli.runtime.weight_files.safe_unpickling import guarded_load
    from beitcli.runtime.weight_files.state_dicts import choose_state_dict

    content = guarded_load(path, _ALLOWED, meta=True, inert=True)
    key, tensors, others = choose_state_dict(str(path), content, part)
    found = {name: tuple(t.shape) for name, t in _without_prefix(tensors).items()}
    return WeightFile(path, container, found, _about(content), size, part, key, tuple(others))


def is_safetensors(path: Path) -> bool:
    """Whether a file is safetensors, by its beginning: the header of others is read with torch. Raises OSError."""
    with path.open("rb") as file:
        return _begins_as_safetensors(file.read(HEAD_BYTES))


def read_tensors(path: Path, part: str = "") -> dict[str, torch.Tensor]:
    """Reads the state dict into CPU memory; no tensor stays memory-mapped.

    Args:
        part: Which state dict is meant, of several.

    Raises:
        UsageError: It is a folder, or no regular file.
        StorageError: It is missing, cannot be read, is damaged, or is not a weights file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from beitcli.runtime.weight_files.safe_unpickling import guarded_load
    from beitcli.runtime.weight_files.state_dicts import choose_state_dict

    container, size = _container(path)
    if container == "safetensors":
        _safetensors_header(path, size)
    try:
        if container == "safetensors":
            tensors = _without_prefix(load_file(path))
        else:
            content = guarded_load(path, _ALLOWED, mapped=True, inert=True)
            tensors = _without_prefix(choose_state_dict(str(path), content, part)[1])
            for name, tensor in tensors.items():
                if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
                    raise StorageError(f"'{path}' claims more numbers for {name} than it stores.", _AGAIN)
        # Both are memory-mapped, and a mapped file that is truncated kills the process (SIGBUS).
        return {name: tensor.detach().clone() for name, tensor in tensors.items()}
    except (SafetensorError, OSError, RuntimeError) as error:  # RuntimeError: a tensor larger than memory
        raise StorageError(f"'{path}' cannot be read: {one_line(str(error))}", _AGAIN) from None


def _begins_as_safetensors(head: bytes) -> bool:
    return head[8:9] == b"{" and 0 < int.from_bytes(head[:8], "little") <= _HEADER_LIMIT


def _container(path: Path) -> tuple[Container, int]:
    """Returns the container and the file size in bytes."""
    try:
        if path.is_dir():
            raise UsageError(f"'{path}' is a folder, not a weights file.", _within(path))
        if path.exists() and not path.is_file():
            raise UsageError(f"'{path}' is no regular file.", "Save it to a file first.")
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
            size = os.fstat(file.fileno()).st_size
    except FileNotFoundError:
        raise StorageError(f"There is no file '{path}'.", _nearby(path)) from None
    except OSError as error:
        raise StorageError(
            f"'{path}' cannot be read: {error.strerror or error}.", "Check the path and the permissions of the file."
        ) from None
    if _begins_as_safetensors(head):
        return "safetensors", size
    other = sniff(head)
    if other is not None:
        if sniff_magic(head) is None:
            from beitcli.runtime.weight_files.safe_unpickling import refuse_pickle_in_text

            refuse_pickle_in_text(path)
        what, hint = other
        raise StorageError(f"'{path}' {what}.", hint)
    return "torch", size


def _within(folder: Path) -> str:
    suffixes = (".safetensors", ".pth", ".pt", ".bin", ".pkl")
    found = sorted(entry.name for entry in folder.iterdir() if entry.suffix in suffixes)
    return f"Give the file in it: {', '.join(found[:4])}." if found else "Give a file."


def _nearby(path: Path) -> str:
    try:
        names = [entry.name for entry in path.parent.iterdir()]
    except OSError:
        names = []
    near = nearest(path.name, names)
    return f"Did you mean '{path.parent / near}'?" if near else "Check the path."


def _safetensors_header(path: Path, size: int) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Returns shapes and metadata after checking the size: 8 bytes of header length, the JSON header, the data."""
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
        if start > size:
            raise StorageError(f"'{path}' is cut short: {size:,} bytes, and its header alone needs {start:,}.", _AGAIN)
        raw = file.read(start - 8)
    try:
        header = parse_json(raw)
        about = dict(header.pop("__metadata__", None) or {})
        shapes = {name: tuple(int(length) for length in entry["shape"]) for name, entry in header.items()}
        ends = [int(entry["data_offsets"][1]) for entry in header.values()]
    except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError):
        raise StorageError(f"'{path}' has a damaged safetensors header.", _AGAIN) from None
    if not shapes:
        raise StorageError(f"'{path}' holds no tensors.", "Give the file that holds the weights.")
    needed = start + max(ends)
    if size < needed:
        raise StorageError(f"'{path}' is cut short: {size:,} of {needed:,} bytes.", _AGAIN)
    if size > needed:
        raise StorageError(f"'{path}' has {size - needed:,} bytes more than its header says.", _AGAIN)
    return shapes, about


def _without_prefix(entries: dict[str, _Entry]) -> dict[str, _Entry]:
    """Removes the prefixes of DDP and torch.compile if all keys have them."""
    for prefix in (*_PREFIXES, *_PREFIXES):
        if all(name.startswith(prefix) for name in entries):
            entries = {name.removeprefix(prefix): entry for name, entry in entries.items()}
    return entries


def _about(content: Any) -> dict[str, Any]:
    if not isinstance(content, Mapping):
        return {}
    about = _plain_entries(content)
    args, meta = content.get("args"), content.get("meta")
    settings = vars(args) if isinstance(args, argparse.Namespace) else args
    if isinstance(settings, Mapping):
        about["args"] = _plain_entries(settings)
    if isinstance(meta, Mapping):
        about["meta"] = _plain_entries(meta) | _plain_entries(meta.get("dataset_meta"))
    return about


def _plain_entries(content: Any) -> dict[str, Any]:
    entries = content.items() if isinstance(content, Mapping) else ()
    return {key: value for key, value in entries if isinstance(key, str) and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(not isinstance(each, (list, tuple)) and _is_plain(each) for each in value)
    return value is None or isinstance(value, (str, int, float, bool))
