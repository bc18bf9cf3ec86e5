"""Stand-ins for what pickles name besides tensors: numbers of NumPy, paths, log buffers, settings, whole modules.

A stand-in stores what it is given and does nothing; no code of the file or of an installed package is imported or run.

| name in the pickle | here |
|---|---|
| a class of a package (`numpy.dtype`, `mmengine...HistoryBuffer`, `timm.models.beit.Beit`) | an inert object |
| one of a few classes of the standard library (`pathlib.PosixPath`, `datetime.datetime`) | an inert object |
| a function of a package (`torch._C._nn.gelu`) | named only: the file is refused if it calls it |
| anything else of the standard library (`os.system`, `builtins.eval`) | refused |
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from typing import Any

_STANDARD = {
    "builtins": {"complex", "slice", "range", "bytearray", "frozenset", "object", "type", "int", "float", "bool", "str",
                 "bytes", "list", "dict", "tuple", "set", "getattr"},
    "collections": {"defaultdict", "deque", "namedtuple"},
    "copyreg": {"_reconstructor"},
    "datetime": {"date", "datetime", "time", "timedelta", "timezone"},
    "decimal": {"Decimal"},
    "enum": {"Enum", "IntEnum"},
    "fractions": {"Fraction"},
    "functools": {"partial"},
    "inspect": {"_empty"},
    "pathlib": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "pathlib._local": {"Path", "PosixPath", "WindowsPath", "PurePath", "PurePosixPath", "PureWindowsPath"},
    "types": {"SimpleNamespace", "MappingProxyType"},
    "typing": {"Any", "Union", "Optional"},
    "uuid": {"UUID", "SafeUUID"},
    "zoneinfo": {"ZoneInfo"},
}  # fmt: skip
_CALLED = (  # functions of packages that build plain values
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray._reconstruct",
    "numpy._core.numeric._frombuffer",
    "numpy.core.numeric._frombuffer",
)
_CLASSES = ("numpy.dtype", "numpy.ndarray")
_NUMPY_NUMBER = ("numpy.float", "numpy.int", "numpy.uint", "numpy.bool", "numpy.str_", "numpy.bytes_", "numpy.complex")
_NEVER = ("torch.storage._load_from_bytes", "torch.jit", "torch.package", "torch.hub", "torch.utils.cpp_extension")


class StandIn:
    """Stands for an object of any class; stores what unpickling gives it.

    Attributes:
        name: Qualified name in the pickle.
        state: What `__setstate__` would have got; empty if there is none.
    """

    name = ""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return super().__new__(cls)

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self.state: Any = {}

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, tuple) and len(state) == 2 and isinstance(state[0], dict):
            state = state[0]  # with slots
        self.state = state

    @property
    def stored(self) -> dict[str, Any]:
        """The attributes of the object."""
        state = vars(self).get("state")
        return state if isinstance(state, dict) else {}


class _Dict(StandIn):
    """Stands for a subclass of dict: its objects become plain dicts, of which torch lets a pickle set the items."""

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        return OrderedDict()


class _List(StandIn, list[Any]):
    """Stands for a subclass of list."""


class CalledError(Exception):
    """The pickle calls a function that weights do not need; the argument is its name."""


class _Function(StandIn):
    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        raise CalledError(cls.name)


def stand_in(name: str, container: type | None = None) -> type[StandIn] | None:
    """Returns the class that stands for a qualified name of a pickle; None if the name is refused.

    Args:
        container: dict or list for a class whose objects have items.
    """
    module, _, last = name.rpartition(".")
    package = module.partition(".")[0]
    if not module or name.startswith(_NEVER):
        return None
    kind = _Dict if container is dict else _List if container is list else StandIn
    if package in sys.stdlib_module_names and package != "__main__":
        return _made(kind, name) if last in _STANDARD.get(module, ()) else None
    is_class = last.lstrip("_")[:1].isupper() or name in _CALLED or name in _CLASSES or name.startswith(_NUMPY_NUMBER)
    return _made(kind if is_class else _Function, name)


def _made(kind: type[StandIn], name: str) -> type[StandIn]:
    shown = name.encode("ascii", "backslashreplace").decode().replace("\0", "\\0")
    return type(shown, (kind,), {"name": name, "__module__": "stand_in"})


def module_tensors(root: StandIn) -> dict[str, Any]:
    """Returns the state dict of a pickled `torch.nn.Module`; empty if it is none.

    A module is visited once, so that cyclic references do not loop forever.
    """
    import torch

    found: dict[str, Any] = {}
    waiting, seen = [("", root)], {id(root)}
    while waiting:
        prefix, module = waiting.pop()
        left_out = module.stored.get("_non_persistent_buffers_set")
        left_out = left_out if isinstance(left_out, (set, frozenset)) else ()
        for part in ("_parameters", "_buffers"):
            for name, tensor in _entries(module, part):
                if isinstance(tensor, torch.Tensor) and name not in left_out:
                    found[f"{prefix}{name}"] = tensor
        for name, child in _entries(module, "_modules"):
            if isinstance(child, StandIn) and id(child) not in seen:
                seen.add(id(child))
                waiting.append((f"{prefix}{name}.", child))
    return found


def _entries(module: StandIn, part: str) -> list[tuple[str, Any]]:
    entries = module.stored.get(part)
    return list(entries.items()) if isinstance(entries, dict) else []
