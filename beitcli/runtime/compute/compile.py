"""torch.compile with one graph per shape, or eager with the reason reported if compilation fails.

torch's `suppress_errors` would hide a fallback to eager. Here the log and the metrics show it.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def compiles(choice: bool | None, device: torch.device) -> bool:
    """Whether to compile: as chosen; by default on CUDA only."""
    return device.type == "cuda" if choice is None else choice


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device ran out of memory, also if a compiler wraps that in its own error."""
    return isinstance(getattr(error, "inner_exception", error), torch.OutOfMemoryError)


class CompiledModule(nn.Module):
    """Calls `module` as one compiled graph in training mode, and eagerly in evaluation mode, which has other shapes.

    It may be wrapped in DDP: torch then splits the graph at the gradient buckets, so that the all-reduce still overlaps
    with the backward pass.

    Args:
        module: Owns the parameters; their names get the prefix `module.`.
        enabled: False never compiles.
        parts: Submodules to compile one by one instead: FSDP2 all-gathers weights between them, which a graph cannot
            contain.

    Attributes:
        failure: Why `module` runs eagerly although `enabled`; empty while it is compiled.
    """

    def __init__(self, module: nn.Module, *, enabled: bool, parts: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.module, self.failure, self._is_on = module, "", enabled
        if enabled and not torch.cuda.is_available():  # it warns of missing CUDA in runs that do not use CUDA
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if enabled:  # fp32 is intended: TF32 is a separate --precision
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores .* available but not enabled")
        self._whole = self._compiled(module) if enabled and not parts else module
        if enabled and parts:  # FSDP2's unsharded weights are not leaves, and Dynamo reads their `.grad`
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            dynamo = torch._dynamo.config  # parts of one class share its code, and each may need its own graph
            dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * len(parts))
            for part in parts:
                part.forward = self._compiled(part)

    @property
    def is_compiled(self) -> bool:
        return self._is_on

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole(*args, **kwargs)

    def _compiled(self, module: nn.Module) -> Callable[..., Any]:
        """Returns a forward that is run eagerly if compilation fails; errors of the computation itself recur there."""
        plain = module.forward
        compiled = torch.compile(plain, dynamic=False, fullgraph=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_on or not module.training:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except Exception as error:  # compilers raise any type
                if is_out_of_memory(error):
                    raise
                self.fall_back(error)
            return plain(*args, **kwargs)

        return call

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Context that runs `module` eagerly: trials of other shapes are not worth a compilation."""
        before, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = before

    def fall_back(self, cause: Exception | str) -> None:
        """Switches to eager mode permanently, and stores the reason in `failure`."""
        if isinstance(cause, Exception):
            cause = getattr(cause, "inner_exception", cause)  # the backend's error, which Dynamo wraps
        lines = str(cause).strip().splitlines() or [""]
        self.failure = (lines[0] if isinstance(cause, str) else f"{type(cause).__name__}: {lines[0]}")[:300].rstrip(".")
        self._is_on = False
