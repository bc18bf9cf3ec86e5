"""Loads files of `torch.save`, zip or legacy, without executing code from the pickle.

A pickle is a program. torch's `weights_only` builds only tensors and plain containers; other harmless names get inert
stand-ins (`stand_ins.py`). This file reports clearly what was refused, and whether a file is damaged or not a torch
file.
"""

from __future__ import annotations

import argparse
import pickle
import pickletools
import re
import warnings
import zipfile
from _compat_pickle import IMPORT_MAPPING, NAME_MAPPING
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from beitcli.errors import StorageError
from beitcli.runtime.storage.regular_files import open_regular, require_regular
from beitcli.runtime.weight_files.file_sniffing import one_line, sniff_zip
from beitcli.runtime.weight_files.stand_ins import CalledError, stand_in

_MOST_FOREIGN, _MOST_ITEMS = 500, 8  # foreign classes in a file, and those of them that are containers
_TRUST = "Ask the publisher for safetensors, or convert the file on a machine where you may trust it."
_OPTIMIZER_STATES = "_optim_states.pt"  # DeepSpeed's, with classes of its own
_PLAIN = "Give the weights in floating point, each number stored (tensor.dequantize(), tensor.to_dense())."
_AGAIN = "Download it again; where it still fails, ask the publisher for safetensors."
_ARRAYS = (
    "Where you trust it, convert it: arrays = pickle.load(open(FILE, 'rb'), encoding='latin1'); arrays = "
    "arrays.get('model', arrays); torch.save({name: torch.as_tensor(each) for name, each in arrays.items() if "
    "hasattr(each, 'shape')}, 'weights.pth')."
)
_MODULE = (
    "Where you trust it, take its weights: torch.save(torch.load(FILE, weights_only=False, map_location='cpu')"
    ".state_dict(), 'weights.pth')."
)
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys; the tensors' bytes follow
_TORCH_NAMES = ("torch.", "collections.OrderedDict", "collections.Counter", "_codecs.encode")
_REFUSED = re.compile(r"GLOBAL ([^\s.]\S*)")
_HAS_ITEMS = re.compile(
    r"Can only (?:SETITEMS? for dict|(?P<append>append to lists)).*<class 'stand_in\.(?P<name>[^']+)'>"
)


def guarded_load(
    path: Path,
    allowed: Sequence[tuple[type, str]] = (),
    *,
    meta: bool = False,
    mapped: bool = False,
    inert: bool = False,
) -> Any:
    """Loads a file on the CPU; only tensors, plain containers and `allowed` classes are built.

    Args:
        allowed: (class to build, qualified name in the pickle) pairs.
        meta: Loads only shapes, without tensor data.
        mapped: Memory-maps a zip file: unused tensors cost nothing, but clone the others before the file can change. A
            legacy file is read.
        inert: Builds a `StandIn` for every other name that is harmless, instead of refusing the file.

    Raises:
        StorageError: The pickle names something else, or the file is damaged or not a torch file.
    """
    allowed_names = {name for _, name in allowed}
    foreign = [name for name in _names(path) if name not in allowed_names] if inert else []
    if len(foreign) > _MOST_FOREIGN:  # torch's guard takes a time that grows with their square
        raise StorageError(f"'{path}' is not loaded: it names {len(foreign):,} foreign classes.", _TRUST)
    containers: dict[str, type] = {}  # of the classes whose objects have items, as far as it showed
    while True:
        stood = [(made, name) for name in foreign if (made := stand_in(name, containers.get(name))) is not None]
        try:
            require_regular(path)
            return _load(path, [*allowed, *stood], meta=meta, mapped=mapped)
        except StorageError:
            raise
        except OSError as error:
            raise StorageError(f"'{path}' cannot be read: {error.strerror or error}.", "Check the file.") from None
        except CalledError as error:
            raise _not_loaded(path, str(error)) from None
        except Exception as error:  # damaged files raise any kind of error
            has_items = _HAS_ITEMS.search(str(error))
            known_name = has_items is not None and has_items["name"] in foreign
            if has_items is None or not known_name or has_items["name"] in containers or len(containers) > _MOST_ITEMS:
                raise _refusal(path, error, [*allowed_names, *(name for _, name in stood)]) from None
            containers[has_items["name"]] = list if has_items["append"] else dict


def _load(path: Path, allowed: Sequence[tuple[type, str]], *, meta: bool, mapped: bool) -> Any:
    zipped = _is_torch_zip(path)
    with ExitStack() as stack:
        stack.enter_context(_only(allowed))
        stack.enter_context(warnings.catch_warnings(action="ignore"))
        if zipped and mapped and path.suffix != ".safetensors":  # torch.load checks the suffix
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        file = stack.enter_context(path.open("rb"))
        if zipped:
            return torch.load(file, map_location="meta" if meta else "cpu", weights_only=True)
        with torch.serialization.skip_data():
            shapes = torch.load(file, map_location="cpu", weights_only=True)
        _require_whole_legacy(path, file.tell(), shapes)
        if meta:
            return shapes
        file.seek(0)
        return torch.load(file, map_location="cpu", weights_only=True)


@contextmanager
def _only(allowed: Sequence[tuple[type, str]]) -> Iterator[None]:
    """Context that adds classes to torch's safe globals; those that were allowed before stay allowed afterwards."""
    before = torch.serialization.get_safe_globals()
    added: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [each for each in allowed if each not in before]
    with torch.serialization.safe_globals(added):
        yield


def _is_torch_zip(path: Path) -> bool:
    """Whether the file is a torch zip file; False if it is not a zip.

    Raises:
        StorageError: It is a truncated zip, or a zip of something else.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except zipfile.BadZipFile:
        size = path.stat().st_size
        raise StorageError(f"'{path}' is cut short: a torch file without its end, {size:,} bytes.", _AGAIN) from None
    names = frozenset(entry.filename.partition("/")[2] for entry in entries)
    if "data.pkl" not in names or "constants.pkl" in names:
        what, hint = sniff_zip([entry.filename for entry in entries])
        raise StorageError(f"'{path}' is {what}.", hint)
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise StorageError(
            f"'{path}' is a torch file that was compressed again.", "Give the file as the publisher made it."
        )
    return True


def _require_whole_legacy(path: Path, start: int, content: Any) -> None:
    """Compares the size of a legacy file with what its tensors take, without reading them.

    Args:
        start: Where the storages begin, in bytes; of each, its length in 8 bytes precedes the data.

    Raises:
        StorageError: The file is too short.
    """
    spans = sorted((t.untyped_storage().data_ptr(), t.untyped_storage().nbytes()) for t in _tensors_within(content))
    needed, end = start, -1
    for address, length in spans:  # views of one storage overlap, and are stored once
        if length and address + length > end:
            needed += address + length - max(address, end) + (8 if address >= end else 0)
            end = address + length
    size = path.stat().st_size
    if size < needed:
        raise StorageError(f"'{path}' is cut short: {size:,} bytes of at least {needed:,}.", _AGAIN)


def _tensors_within(content: Any) -> Iterator[torch.Tensor]:
    """Yields the tensors of nested dicts, lists, tuples and settings; objects that refer to themselves only once."""
    pending, seen = [content], set()
    while pending:
        each = pending.pop()
        if isinstance(each, torch.Tensor):
            if each.layout == torch.strided and not each.is_quantized:
                yield each
            continue
        if id(each) in seen:
            continue
        seen.add(id(each))
        if isinstance(each, Mapping):
            pending.extend(each.values())
        elif isinstance(each, list | tuple | set):
            pending.extend(each)
        elif isinstance(each, argparse.Namespace):
            pending.append(vars(each))


def _refusal(path: Path, error: Exception, allowed: Sequence[str]) -> StorageError:
    if isinstance(error, pickle.UnpicklingError):
        named = _REFUSED.search(str(error))
        refused = [named[1]] if named else [name for name in _foreign_names(path) if name not in allowed]
        if refused:
            return _not_loaded(path, refused[0])
    if "Only persistent_load of storage" in str(error):
        return StorageError(f"'{path}' is a whole pickled module in the old format, not a state dict.", _MODULE)
    plain = not zipfile.is_zipfile(path) and ("magic number" in str(error) or "Unsupported operand" in str(error))
    if plain and any(name.endswith("multiarray._reconstruct") for name in _names(path)):
        return StorageError(f"'{path}' is a Python pickle of NumPy arrays, not of tensors.", _ARRAYS)
    if isinstance(error, RuntimeError) and "magic number" in str(error):
        return StorageError(f"'{path}' is a Python pickle, but none that torch.save wrote.", _TRUST)
    if "quantized" in str(error):  # the header is read without data, for which torch has no such tensors
        return StorageError(f"'{path}' holds quantised tensors.", _PLAIN)
    if "Cannot copy out of meta tensor" in str(error) or "Sparse" in str(error):
        return StorageError(f"'{path}' holds sparse tensors.", _PLAIN)
    if isinstance(error, EOFError):
        return StorageError(f"'{path}' is cut short: it ends within its pickle.", _AGAIN)
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error) or type(error).__name__
    said = one_line(message.partition("Check the documentation")[0]).removesuffix(".")
    return StorageError(f"'{path}' is damaged or no torch file: {said}.", _AGAIN)


def refuse_pickle_in_text(path: Path) -> None:
    """Raises StorageError if a file that looks like text is a pickle of protocol 0 that names code."""
    refused = _foreign_names(path)
    if refused:
        raise _not_loaded(path, refused[0])


def _not_loaded(path: Path, name: str) -> StorageError:
    if path.name.endswith(_OPTIMIZER_STATES):
        return StorageError(
            f"'{path}' holds the state of DeepSpeed's optimizer and no model.",
            "Give mp_rank_00_model_states.pt beside it, or the folder.",
        )
    return StorageError(
        f"'{path}' is not loaded: its pickle asks for `{one_line(name)}`, which is no tensor and could run anything.",
        _TRUST,
    )


def _foreign_names(path: Path) -> list[str]:
    """Lists the qualified names in the pickles of a file that are not torch's or plain containers'."""
    return [name for name in _names(path) if not name.startswith(_TORCH_NAMES)]


def _names(path: Path) -> list[str]:
    """Lists the qualified names in the pickles of a file, each once; empty if they cannot be read."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(open_regular(path))
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(file))
                inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                file = stack.enter_context(archive.open(inner))
            return list(dict.fromkeys(map(_of_python_3, pickled_names(file))))
    except Exception:  # zipfile raises any kind of error on damaged files
        return []


def _of_python_3(name: str) -> str:
    """Returns a qualified name of Python 2, as pickles of protocol 2 have it (`__builtin__.set`), by today's name."""
    module, _, last = name.rpartition(".")
    module, last = NAME_MAPPING.get((module, last), (IMPORT_MAPPING.get(module, module), last))
    return f"{module}.{last}"


def pickled_names(file: IO[bytes]) -> list[str]:
    """Lists the qualified names in the pickles at the start of a file; parses them without executing."""
    names: list[str] = []
    for _ in range(_LEGACY_PICKLES):
        try:
            names += _names_of_next(file)
        except Exception:  # no more pickles: pickletools raises any kind of error
            break
    return names


def _names_of_next(file: IO[bytes]) -> list[str]:
    found: list[str] = []
    pushed: list[str] = []  # strings; STACK_GLOBAL takes the last two
    memo: dict[int, str] = {}
    top = ""
    for opcode, argument, _place in pickletools.genops(file):
        if opcode.name in ("GLOBAL", "INST"):
            found.append(str(argument).replace(" ", ".", 1))
        elif opcode.name == "STACK_GLOBAL":
            found.append(".".join(pushed[-2:]))
        elif opcode.name == "MEMOIZE":
            memo[len(memo)] = top
            continue
        elif opcode.name.endswith("GET"):
            argument = memo.get(argument) if isinstance(argument, int) else None
        top = argument if isinstance(argument, str) else ""
        if top:
            pushed.append(top)
    return found
