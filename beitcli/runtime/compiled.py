"""A module behind `torch.compile`: one graph for one shape, and eager with the reason told where that fails.

torch's `suppress_errors` would hide a fall back to eager; here it is an attribute that the log and the metrics show.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def compiles(choice: bool | None, device: torch.device) -> bool:
    """Whether to compile: as chosen, and where nothing is chosen, on CUDA."""
    return device.type == "cuda" if choice is None else choice


class CompiledModule(nn.Module):
    """Calls `module` through one compiled graph, whose shapes stay as they were in the first call.

    It may be wrapped in DistributedDataParallel: torch then cuts the graph at the gradient buckets, so that reduction
    still overlaps with the backward pass.

    Args:
        module: Owns the parameters; their names stay below `module.`.
        enabled: False calls `module` as it is.

    Attributes:
        failure: Why `module` runs eagerly although compilation was asked for; empty where it is compiled.
    """

    def __init__(self, module: nn.Module, *, enabled: bool) -> None:
        super().__init__()
        self.module, self.failure = module, ""
        self._compiled: Callable[..., Any] | None = None
        if enabled:
            self._compiled = torch.compile(module.forward, dynamic=False, fullgraph=True)

    @property
    def is_compiled(self) -> bool:
        return self._compiled is not None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """As `module`; a compiler's failure falls back to it, an error of the computation itself is raised by it."""
        if self._compiled is None:
            return self.module(*args, **kwargs)
        try:
            return self._compiled(*args, **kwargs)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # compilers raise anything
            self.fall_back(error)
        return self.module(*args, **kwargs)

    @contextmanager
    def eager(self) -> Iterator[None]:
        """Calls meanwhile run `module` as it is: trials of other shapes are not worth a compilation."""
        compiled, self._compiled = self._compiled, None
        try:
            yield
        finally:
            self._compiled = compiled

    def fall_back(self, cause: Exception | str) -> None:
        """Runs eagerly from now on, and keeps the reason in `failure`."""
        lines = str(cause).strip().splitlines() or [""]
        named = lines[0] if isinstance(cause, str) else f"{type(cause).__name__}: {lines[0]}"
        self.failure = named[:300]
        self._compiled = None
