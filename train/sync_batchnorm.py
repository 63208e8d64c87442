"""BatchNorm with the statistics of the global batch. GPUs use torch's class; torch has none for CPUs, so it is here."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.distributed import sum_over_ranks, world_size


class _SumOverRanks(torch.autograd.Function):
    """The sum of a tensor over the ranks. Its gradient is the sum of the ranks' gradients."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        total = tensor.clone(memory_format=torch.contiguous_format)
        sum_over_ranks(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, gradient)


class SyncBatchNorm(nn.BatchNorm2d):
    """BatchNorm of [B, C, ...] with mean and variance over all ranks. All ranks must have the same batch size."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return F.batch_norm(input, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = world_size() * input.numel() // input.shape[1]
        mean = _SumOverRanks.apply(input.float().sum(dims)) / count
        centered = input.float() - mean.view(shape)
        variance = _SumOverRanks.apply(centered.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace the BatchNorm layers by synchronised ones if there are several ranks. Names and weights stay the same."""
    if world_size() == 1:
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d):
                layer = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
                layer.load_state_dict(child.state_dict())
                for parameter, original in zip(layer.parameters(), child.parameters(), strict=True):
                    parameter.requires_grad = original.requires_grad
                setattr(parent, name, layer)
    return network
