"""Keeps torch's compiler out of the imports of timm and torchvision, which do not need it (stdlib only).

`torch._dynamo`, with sympy and a thousand further modules, takes half of the time that a command needs to begin.
torchvision imports it for one function of roi_align, timm for one decorator. While these two are imported, the function
is imported at its first call, and the decorator is torch's own that does so (`torch._compile._disable_dynamo`, which
torch's optimizers use). Both then do what they always did.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

_LIBRARIES = ("torchvision", "timm")
_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"


@contextmanager
def without_compiler() -> Iterator[None]:
    """Context of imports that would import torch's compiler; of no effect where it is imported already."""
    if _COMPILER in sys.modules or _UTILS in sys.modules:
        yield
        return
    import torch.compiler
    from torch._compile import _disable_dynamo

    stand_in, disable = _LateModule(_UTILS), torch.compiler.disable

    def late_disable(fn: Any = None, recursive: bool = True, *, reason: str | None = None) -> Any:
        return _disable_dynamo(fn, recursive)

    sys.modules[_UTILS] = stand_in
    torch.compiler.disable = late_disable
    try:
        yield
    finally:
        torch.compiler.disable = disable
        stand_in.leave()


class _LateModule(ModuleType):
    """Stands in for `torch._dynamo.utils`: any other name than the one below imports the real module."""

    def is_compile_supported(self, device_type: Any) -> bool:
        self.leave()
        return bool(importlib.import_module(_UTILS).is_compile_supported(device_type))

    def leave(self) -> None:
        if sys.modules.get(_UTILS) is self:
            del sys.modules[_UTILS]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # asked by the import system
            raise AttributeError(name)
        self.leave()
        return getattr(importlib.import_module(_UTILS), name)


class _Finder(MetaPathFinder):
    """Finds timm and torchvision as ever, and imports them in `without_compiler`."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name not in _LIBRARIES or _COMPILER in sys.modules:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


class _Loader(Loader):
    def __init__(self, real: Loader) -> None:
        self.real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        if module.__spec__ is not None:  # the module keeps no trace of this loader
            module.__spec__.loader = self.real
        module.__loader__ = self.real
        with without_compiler():
            self.real.exec_module(module)


def install() -> None:
    """Has later imports of timm and torchvision leave the compiler out."""
    if not any(isinstance(each, _Finder) for each in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
