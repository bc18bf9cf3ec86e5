"""Batch norm over the images of all ranks, so that its statistics do not depend on the world size."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import nn

from beitcli.runtime.distributed.world import DistributedContext


def convert_sync_batchnorm(model: nn.Module, world: DistributedContext) -> None:
    """Replaces every BatchNorm2d by a synchronized one; the state dict stays the same."""
    if world.size == 1:
        return
    for parent in list(model.modules()):
        for name, module in list(parent.named_children()):
            if type(module) is nn.BatchNorm2d:
                on_gpu = next(module.parameters()).device.type == "cuda"
                shared = nn.SyncBatchNorm.convert_sync_batchnorm(module) if on_gpu else _shared(module)
                setattr(parent, name, shared)


class SyncBatchNorm2d(nn.BatchNorm2d):
    """`nn.SyncBatchNorm` for the CPU, which torch does not have."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Normalizes (B, C, H, W) of this rank; in training mode with the mean and variance over all ranks."""
        if not self.training:
            return super().forward(maps)
        values = maps.float()
        count = values.new_full((1,), values.numel() / values.shape[1]).double()
        variance, mean = torch.var_mean(values, dim=(0, 2, 3), correction=0)
        mean, variance = mean.double(), variance.double()
        sums = torch.cat((count * mean, count * (variance + mean.square()), count))
        mean, square, total = _AllSum.apply(sums).split((len(mean), len(mean), 1))
        mean, variance = mean / total, (square / total - (mean / total).square()).clamp(min=0)
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.momentum is not None
        with torch.no_grad():
            unbiased = variance * total / (total - 1).clamp(min=1)
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
            self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
            assert self.num_batches_tracked is not None
            self.num_batches_tracked.add_(1)
        shape = (1, -1, 1, 1)
        scale = (self.weight.double() * torch.rsqrt(variance + self.eps)).float().view(shape)
        return (values - mean.float().view(shape)) * scale + self.bias.view(shape)


class _AllSum(torch.autograd.Function):
    """Sum over ranks with gradient: the loss of each rank depends on it, so the gradients are summed over ranks too."""

    @staticmethod
    def forward(ctx: object, tensor: torch.Tensor) -> torch.Tensor:
        summed = tensor.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: object, gradient: torch.Tensor) -> torch.Tensor:
        summed = gradient.contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _shared(module: nn.BatchNorm2d) -> SyncBatchNorm2d:
    shared = SyncBatchNorm2d(module.num_features, module.eps, module.momentum or 0.1)
    shared.load_state_dict(module.state_dict())
    return shared.to(next(module.parameters()).device).train(module.training)
