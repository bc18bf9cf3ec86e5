"""Notes operators that make the host wait for the device on CUDA, also where a test runs on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

_WAITING = {torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero, torch.ops.aten.bincount}


class DeviceWaits(TorchDispatchMode):
    """Names of the operators inside `with` that read a number of the device, or need one for the shape of their result.

    Copies to the CPU, such as of `tolist`, are no operators where the tensor is there already, and are not noted.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = function.overloadpacket
        by_mask = packet is torch.ops.aten.index and any(i is not None and i.dtype is torch.bool for i in args[1])
        if by_mask or packet in _WAITING:
            self.names.append(function.__name__)
        return function(*args, **(kwargs or {}))
