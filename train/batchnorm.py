"""BatchNorm layers for training: batches are counted together, and statistics may be those of the global batch.

torch's layers count the batches one by one, with a kernel each. torch's SyncBatchNorm also makes the host wait for the
GPU in every layer. Those here have the same names, weights and results.
"""

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from train.layers import replace_layers
from utils.distributed import sum_over_ranks, world_size
from utils.errors import InputError


class BatchNorm(nn.BatchNorm2d):
    """BatchNorm of [B, C, ...] with statistics of this rank. It does not count batches: see `replace_batch_norms`."""

    def forward(self, input: Tensor) -> Tensor:
        return F.batch_norm(
            input, self.running_mean, self.running_var, self.weight, self.bias, self.training, self.momentum, self.eps
        )


class SyncBatchNorm(BatchNorm):
    """BatchNorm of [B, C, ...] with mean and variance over all ranks. All ranks must have the same batch size."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = world_size() * input.numel() // input.shape[1]
        mean = _SumOverRanks.apply(input.float().sum(dims)) / count
        centered = input.float() - mean.view(shape)
        variance = _SumOverRanks.apply(centered.square().sum(dims)) / count
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


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


def replace_batch_norms(network: nn.Module, synchronised: bool) -> nn.Module:
    """Replace torch's BatchNorm layers by those of this file, in place, and return the network.

    A forward pass in training mode then increases all counters (num_batches_tracked) in one operation. synchronised:
    take the statistics over all ranks. Raises InputError if the network has layers that cannot do that.
    """
    synchronised = synchronised and world_size() > 1
    kind = SyncBatchNorm if synchronised else BatchNorm
    replace_layers(network, partial(_replacement, kind))
    local = {type(layer).__name__ for layer in network.modules() if isinstance(layer, _BatchNorm)} - {kind.__name__}
    if synchronised and local:
        raise InputError(
            f"sync_bn = True: the student has layers ({', '.join(sorted(local))}) whose statistics would be those of "
            "each rank; set sync_bn=False, or choose another network"
        )
    if any(isinstance(layer, BatchNorm) for layer in network.modules()):
        network.register_forward_pre_hook(_count_batch)
    return network


def _replacement(kind: type[BatchNorm], layer: nn.Module) -> BatchNorm | None:
    # Not for subclasses, which may do more, nor for layers whose averages depend on the counter.
    if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d) or layer.momentum is None:
        return None
    new = kind(layer.num_features, layer.eps, layer.momentum, layer.affine)
    new.load_state_dict(layer.state_dict())
    new.weight, new.bias = layer.weight, layer.bias  # with their requires_grad
    return new


def _count_batch(network: nn.Module, inputs: tuple) -> None:
    if network.training:
        counters = [layer.num_batches_tracked for layer in network.modules() if isinstance(layer, BatchNorm)]
        # A private function of torch, because no public one adds to many tensors in one operation.
        torch._foreach_add_(counters, 1)
