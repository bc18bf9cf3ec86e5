"""Builds modules whose tensors have shapes and no values, for weights that are loaded next or for sizes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

_OF_TENSORS = {"uniform_", "normal_", "erfinv_", "clamp_", "mul_", "add_", "div_", "fill_", "zero_"}
_OF_NN_INIT = {
    *("normal_", "trunc_normal_", "uniform_", "constant_", "ones_", "zeros_"),
    *("kaiming_normal_", "kaiming_uniform_", "xavier_normal_", "xavier_uniform_"),
}
_SETS_VALUES = _OF_TENSORS | _OF_NN_INIT


@contextmanager
def shapes_only() -> Iterator[None]:
    """Context in which new tensors have no memory: torch's meta device, without the work of initializing them.

    Some of torch's initializers would import parts of its compiler for such tensors, which takes seconds.
    """
    with torch.device("meta"), _NoValues():
        yield


def give_memory(module: nn.Module) -> None:
    """Gives all tensors of a module memory on the CPU, with any values.

    `Module.to_empty` does the same through a function that imports parts of torch's compiler.
    """
    module._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))


class _NoValues(TorchFunctionMode):
    """Mode in which functions that only set values return tensors without memory as they are."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in _SETS_VALUES:
            tensor = args[0] if args else kwargs.get("tensor")
            if isinstance(tensor, torch.Tensor) and tensor.is_meta:
                return tensor
        return func(*args, **kwargs)
