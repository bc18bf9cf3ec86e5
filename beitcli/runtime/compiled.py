"""torch.compile that no one needs a compiler for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn


def compiled(model: nn.Module, wanted: bool) -> Callable[..., Any]:
    """The model, compiled for one shape where that is wanted.

    On two CPU cores compiling takes minutes and gains less than they cost in most runs (docs/performance.md).

    Returns:
        What is called as the model is. Where its code cannot be compiled torch warns, and it runs as it is.
    """
    if not wanted:
        return model
    torch._dynamo.config.suppress_errors = True
    return torch.compile(model, dynamic=False)
