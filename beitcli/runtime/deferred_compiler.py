"""Keeps torch's compiler from being loaded by what does not compile: that would be a third of a command's start.

timm and torchvision load it for a few decorators, tensors on the meta device for their reference functions,
optimizers to keep it out of their steps. While these are at work, stand-ins take its place; `torch.compile` loads it
when it is used. Initial values on that device would load sympy, and are left out. While timm is imported it finds
neither sharded tensors, which load sympy too, nor the hub's client, which it is never asked to use here, nor wandb,
which makes temporary folders. Only the command line defers and hides them: a script's imports are the script's.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

if TYPE_CHECKING:  # importing it takes as long as Python itself
    from importlib.abc import Loader

_COMPILER, _UTILS = "torch._dynamo", "torch._dynamo.utils"
_HIDDEN = ("wandb", "huggingface_hub", "torch.distributed.tensor")
_VALUES_ONLY = ("normal_", "uniform_", "erfinv_", "clamp_", "mul_", "div_", "add_")  # of an initialization
_PACKAGES = ("timm", "timm.optim", "torchvision")
_Function = TypeVar("_Function", bound=Callable[..., Any])


def defer_compiler() -> None:
    """Lets this process do without the compiler until it compiles."""
    if not _is_deferred():
        sys.meta_path.insert(0, _Finder())


def _is_deferred() -> bool:
    return any(isinstance(finder, _Finder) for finder in sys.meta_path)


@contextmanager
def meta_device() -> Iterator[None]:
    """Context in which tensors are made on the meta device: without memory and values, and so never initialized."""
    import torch

    with compiler_stand_ins(), torch.device("meta"), _initialization_skipped(lambda tensor: tensor.is_meta):
        yield


@contextmanager
def uninitialized_parameters() -> Iterator[None]:
    """Context in which parameters get memory but no random values, which take seconds; buffers get theirs."""
    from torch.nn import Parameter

    with compiler_stand_ins(), _initialization_skipped(lambda tensor: isinstance(tensor, Parameter)):
        yield


def _initialization_skipped(is_skipped: Callable[[Any], bool]) -> AbstractContextManager[Any]:
    """Returns a context in which initializing such a tensor does nothing, nor does drawing one on the meta device."""
    import torch
    from torch.overrides import TorchFunctionMode

    initializers = {getattr(torch.Tensor, name) for name in _VALUES_ONLY}
    draws = {torch.rand, torch.randn}

    class WithoutValues(TorchFunctionMode):
        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            named = kwargs or {}
            if func in initializers or getattr(func, "__module__", "") == "torch.nn.init":
                tensor = args[0] if args else named.get("tensor")
                if isinstance(tensor, torch.Tensor) and is_skipped(tensor):
                    return tensor
            if func is torch.nn.functional.normalize and args and args[0].is_meta:
                return args[0]
            if func in draws and torch.device(named.get("device") or torch.get_default_device()).type == "meta":
                return torch.empty(*args, **named)
            return func(*args, **named)

    return WithoutValues()


class _Finder:
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path) if fullname in _PACKAGES else None
        if spec is not None and spec.loader is not None:
            spec.loader = cast("Loader", _Deferring(cast("Loader", spec.loader)))
        return spec


class _Deferring:
    """Loads a package by its own loader, with the stand-ins."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        before, names = set(sys.modules), dict(vars(module))
        try:
            with compiler_stand_ins(), _hidden():
                self._loader.exec_module(module)
            _hand_over_hub()
        except (ImportError, AttributeError):  # a release that needs more of the compiler
            for name in set(sys.modules) - before:
                if name.startswith(_PACKAGES):
                    del sys.modules[name]
            vars(module).clear()
            vars(module).update(names)
            self._loader.exec_module(module)


@contextmanager
def _hidden() -> Iterator[None]:
    """Context in which optional packages cannot be imported, unless they have been."""
    names = [name for name in _HIDDEN if name not in sys.modules]
    sys.modules |= dict.fromkeys(names)  # type: ignore[arg-type] # None is Python's way to say that there is none
    try:
        yield
    finally:
        for name in names:
            del sys.modules[name]


def _hand_over_hub() -> None:
    """Has timm import the hub's client when it asks for it, as a plugin's `create_model(pretrained=True)` does."""
    client = sys.modules.get("timm.models._hub")
    if client is not None and getattr(client, "_has_hf_hub", None) is False:
        client._has_hf_hub = _HubWhenAsked(client)  # type: ignore[attr-defined]


class _HubWhenAsked:
    """Truth value: whether the hub's client can be imported, by timm's module itself."""

    def __init__(self, client: ModuleType) -> None:
        self._client = client

    def __bool__(self) -> bool:
        self._client.__spec__.loader.exec_module(self._client)  # type: ignore[union-attr]
        return self._client._has_hf_hub is True


@contextmanager
def compiler_stand_ins() -> Iterator[None]:
    """Context in which decorators only mark functions for the compiler, and it need not be there.

    It changes nothing once the compiler is loaded, or where it is not deferred.
    """
    import torch

    if _COMPILER in sys.modules or not _is_deferred():  # it is loaded, or this is torchvision within timm
        yield
        return
    package, utils = ModuleType(_COMPILER), ModuleType(_UTILS)
    package.__path__ = []
    package.__dict__.update(utils=utils, disable=_unchanged, graph_break=_nothing)
    utils.__dict__["is_compile_supported"] = _is_compile_supported
    disable = torch.compiler.disable
    sys.modules |= {_COMPILER: package, _UTILS: utils}
    torch.compiler.disable = _marked
    try:
        yield
    finally:
        torch.compiler.disable = disable
        for name, module in ((_COMPILER, package), (_UTILS, utils)):
            if sys.modules.get(name) is module:
                del sys.modules[name]


def _is_compile_supported(device_type: str) -> bool:
    from torch._dynamo.utils import is_compile_supported

    return bool(is_compile_supported(device_type))


def _marked(function: _Function | None = None, recursive: bool = True, *, reason: str | None = None) -> Any:
    """Marks a function as `torch.compiler.disable` does; without one, returns the decorator."""
    if function is None:
        return _marked
    function.__dict__["_torchdynamo_disable"] = True
    return function


def _nothing() -> None:
    """`torch._dynamo.graph_break`, where nothing is compiled."""


def _unchanged(function: _Function, recursive: bool = True, *, wrapping: bool = True) -> _Function:
    return function
