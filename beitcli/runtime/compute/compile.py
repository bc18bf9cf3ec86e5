"""A module behind `torch.compile`: one graph for one shape, and eager with the reason told where that fails.

torch's `suppress_errors` would hide a fall back to eager; here it is an attribute that the log and the metrics show.
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
    """Whether to compile: as chosen, and where nothing is chosen, on CUDA."""
    return device.type == "cuda" if choice is None else choice


def is_out_of_memory(error: Exception) -> bool:
    """Whether the device had no room, also where a compiler says so in an error of its own."""
    return isinstance(getattr(error, "inner_exception", error), torch.OutOfMemoryError)


class CompiledModule(nn.Module):
    """Calls `module` through one compiled graph in training, and as it is in evaluation, which has other shapes.

    It may be wrapped in DistributedDataParallel: torch then cuts the graph at the gradient buckets, so that reduction
    still overlaps with the backward pass.

    Args:
        module: Owns the parameters; their names stay below `module.`.
        enabled: False never compiles.
        parts: Modules inside `module` to compile one by one in its place: FSDP2 gathers weights between them, where no
            graph reaches.

    Attributes:
        failure: Why `module` runs eagerly although compilation was asked for; empty where it is compiled.
    """

    def __init__(self, module: nn.Module, *, enabled: bool, parts: Sequence[nn.Module] = ()) -> None:
        super().__init__()
        self.module, self.failure, self._is_on = module, "", enabled
        if enabled and not torch.cuda.is_available():  # it would warn of CUDA in a run that has nothing to do with it
            logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
        if enabled:  # fp32 is meant where it is asked for, and tf32 is a precision of its own
            warnings.filterwarnings("ignore", message="TensorFloat32 tensor cores .* available but not enabled")
        self._whole = self._compiled(module) if enabled and not parts else module
        if enabled and parts:  # FSDP2's gathered weights are no leaves, and Dynamo looks at their `.grad`
            warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
            dynamo = torch._dynamo.config  # parts of one class share its code, and each may need a graph of its own
            dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * len(parts))
            for part in parts:
                part.forward = self._compiled(part)

    @property
    def is_compiled(self) -> bool:
        return self._is_on

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self._whole(*args, **kwargs)

    def _compiled(self, module: nn.Module) -> Callable[..., Any]:
        """A compiler's failure falls back to eager; an error of the computation itself is raised again by that."""
        plain = module.forward
        compiled = torch.compile(plain, dynamic=False, fullgraph=True)

        def call(*args: Any, **kwargs: Any) -> Any:
            if not self._is_on or not module.training:
                return plain(*args, **kwargs)
            try:
                return compiled(*args, **kwargs)
            except Exception as error:  # compilers raise anything
                if is_out_of_memory(error):
                    raise
                self.fall_back(error)
            return plain(*args, **kwargs)

        return call

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Calls meanwhile run `module` as it is: trials of other shapes are not worth a compilation."""
        before, self._is_on = self._is_on, False
        try:
            yield
        finally:
            self._is_on = before

    def fall_back(self, cause: Exception | str) -> None:
        """Runs eagerly from now on, and keeps the reason in `failure`."""
        if isinstance(cause, Exception):
            cause = getattr(cause, "inner_exception", cause)  # what a backend raised, under Dynamo's own error
        lines = str(cause).strip().splitlines() or [""]
        self.failure = (lines[0] if isinstance(cause, str) else f"{type(cause).__name__}: {lines[0]}")[:300].rstrip(".")
        self._is_on = False
