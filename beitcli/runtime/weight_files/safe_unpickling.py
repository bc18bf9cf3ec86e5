"""Loads files of `torch.save`, zip or legacy, without executing code from the pickle.

A pickle is a program. torch's `weights_only` builds only tensors and plain containers; this file reports clearly what
was refused, and whether a file is damaged or not a torch file.
"""

from __future__ import annotations

import pickle
import pickletools
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from beitcli.errors import StorageError
from beitcli.runtime.storage.regular_files import open_regular, require_regular
from beitcli.runtime.weight_files.file_sniffing import one_line

_TRUST = "Ask the publisher for safetensors, or convert the file on a machine where you may trust it."
_AGAIN = "Download it again; where it still fails, ask the publisher for safetensors."
_LEGACY_PICKLES = 5  # magic number, protocol, system, object, storage keys; the tensors' bytes follow
_PLAIN = ("torch.", "collections.OrderedDict", "collections.Counter", "_codecs.encode")
_REFUSED = re.compile(r"GLOBAL ([^\s.]\S*)")


def guarded_load(
    path: Path, allowed: Sequence[tuple[type, str]] = (), *, meta: bool = False, mapped: bool = False
) -> Any:
    """Loads a file on the CPU; only tensors, plain containers and `allowed` classes are built.

    Args:
        allowed: (class to build, qualified name in the pickle) pairs.
        meta: Loads only shapes, without tensor data.
        mapped: Memory-maps a zip file: unused tensors cost nothing, but clone the others before the file can change. A
            legacy file is read.

    Raises:
        StorageError: The pickle names something else, or the file is damaged or not a torch file.
    """
    try:
        require_regular(path)
        zipped = _is_torch_zip(path)
        with ExitStack() as stack:
            stack.enter_context(_only(allowed))
            stack.enter_context(warnings.catch_warnings(action="ignore"))
            if zipped and mapped and path.suffix != ".safetensors":  # torch.load checks the suffix
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            file = stack.enter_context(path.open("rb"))
            if meta and not zipped:
                stack.enter_context(torch.serialization.skip_data())
            return torch.load(file, map_location="meta" if meta and zipped else "cpu", weights_only=True)
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"'{path}' cannot be read: {error.strerror or error}.", "Check the file.") from None
    except Exception as error:  # damaged files raise any kind of error
        raise _refusal(path, error, [name for _, name in allowed]) from None


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
    if "constants.pkl" in names:
        raise StorageError(
            f"'{path}' is a TorchScript program, not weights.", "Give the state dict that it was made from."
        )
    if "data.pkl" not in names:
        listed = one_line(", ".join(entry.filename for entry in entries[:4]) or "nothing")
        raise StorageError(f"'{path}' is a zip archive of {listed}.", "Unpack it and give the weights file in it.")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise StorageError(
            f"'{path}' is a torch file that was compressed again.", "Give the file as the publisher made it."
        )
    return True


def _refusal(path: Path, error: Exception, allowed: Sequence[str]) -> StorageError:
    if isinstance(error, pickle.UnpicklingError):
        named = _REFUSED.search(str(error))
        asked = [named[1]] if named else [name for name in _foreign_names(path) if name not in allowed]
        if asked:
            return _not_loaded(path, asked[0])
    if isinstance(error, RuntimeError) and "magic number" in str(error):
        return StorageError(f"'{path}' is a Python pickle, but none that torch.save wrote.", _TRUST)
    if isinstance(error, EOFError):
        return StorageError(f"'{path}' is cut short: it ends within its pickle.", _AGAIN)
    message = str(error).partition("WeightsUnpickler error: ")[2] or str(error) or type(error).__name__
    said = one_line(message.partition("Check the documentation")[0]).removesuffix(".")
    return StorageError(f"'{path}' is damaged or no torch file: {said}.", _AGAIN)


def refuse_pickle_in_text(path: Path) -> None:
    """Raises StorageError if a file that looks like text is a pickle of protocol 0 that names code."""
    asked = _foreign_names(path)
    if asked:
        raise _not_loaded(path, asked[0])


def _not_loaded(path: Path, name: str) -> StorageError:
    return StorageError(
        f"'{path}' is not loaded: its pickle asks for `{one_line(name)}`, which is no tensor and could run anything.",
        _TRUST,
    )


def _foreign_names(path: Path) -> list[str]:
    """Lists the qualified names in the pickles of a file that are not torch's or plain containers'."""
    try:
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(open_regular(path))
            if zipfile.is_zipfile(path):
                archive = stack.enter_context(zipfile.ZipFile(file))
                inner = next(name for name in archive.namelist() if name.endswith("/data.pkl"))
                file = stack.enter_context(archive.open(inner))
            return [name for name in pickled_names(file) if not name.startswith(_PLAIN)]
    except Exception:  # zipfile raises any kind of error on damaged files
        return []


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
