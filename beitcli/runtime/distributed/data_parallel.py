"""DDP around a model, with gradients as views of their buckets."""

from __future__ import annotations

import warnings

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from beitcli.errors import UsageError
from beitcli.runtime.distributed.world import DistributedContext


def parallel(
    model: nn.Module, world: DistributedContext, *, all_used: bool = True, compression: str = "none"
) -> nn.Module:
    """Wraps the model in DDP, which averages gradients over ranks during the backward pass.

    Args:
        all_used: Whether every parameter has a gradient in every step.
        compression: `none`, or `bf16`: gradients are cast to it for the all-reduce, and summed in it.

    Raises:
        UsageError: This build of torch cannot compress gradients.
    """
    if world.size == 1:
        return model
    warnings.filterwarnings("ignore", message="Grad strides do not match")  # strides of sides of 1, which are arbitrary
    # No `device_ids`: DDP would move the seeds of CPU generators to the device, and reading them would wait for it.
    # No `static_graph`, which is incompatible with `no_sync`: only the last micro-batch of a step reduces gradients.
    shared = DistributedDataParallel(  # gradients as views of their buckets take half the memory
        model, find_unused_parameters=not all_used, gradient_as_bucket_view=True
    )
    shared.broadcast_buffers = False  # constant, or equal on all ranks; torch 2.14 has renamed the argument
    if compression == "bf16":
        try:
            shared.register_comm_hook(None, bf16_compress_hook)
        except TypeError as error:  # DDP's check of CUDA and NCCL
            said = f"--grad-compression bf16: {str(error).splitlines()[0]}."
            raise UsageError(said, "Leave --grad-compression out.") from None
    return shared
