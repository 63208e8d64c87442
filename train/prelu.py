"""PReLU with a faster backward pass on CPUs.

torch computes the gradients one number at a time, and stores that of the weight once per number before it is summed.
Here, a few vectorised operations do it for a part of the batch that fits into the caches, then for the next one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.layers import replace_layers

ELEMENTS_PER_CHUNK = 2**18  # 1 MB in float32


class PReLU(nn.PReLU):
    """torch's PReLU with one weight per channel, for channels-last images. The gradients differ by rounding only.

    For other inputs, and where autocast converts the input, it is torch's.
    """

    def forward(self, input: Tensor) -> Tensor:
        kind = input.device.type
        converts = torch.is_autocast_enabled(kind) and input.dtype != torch.get_autocast_dtype(kind)
        if converts or not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return _PReLUFunction.apply(input, self.weight)


class _PReLUFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(gradient)
        grad_weight = torch.zeros_like(weight)
        slope = weight.to(x.dtype)
        rows = max(1, ELEMENTS_PER_CHUNK // len(weight))
        chunks = [tensor.permute(0, 2, 3, 1).view(-1, len(weight)).split(rows) for tensor in (x, gradient, grad_x)]
        scratch = torch.empty_like(chunks[0][0])
        for x_chunk, grad_chunk, grad_x_chunk in zip(*chunks, strict=True):
            grad_where_positive = scratch[: len(x_chunk)]
            # The gradient where x > 0, else 0. The public functions for this take two passes.
            torch.ops.aten.threshold_backward.grad_input(grad_chunk, x_chunk, 0, grad_input=grad_where_positive)
            torch.lerp(grad_where_positive, grad_chunk, slope, out=grad_x_chunk)  # slope * gradient where x <= 0
            grad_where_negative = torch.sub(grad_chunk, grad_where_positive, out=grad_where_positive)
            grad_weight += grad_where_negative.mul_(x_chunk).sum(0, dtype=weight.dtype)
        return grad_x, grad_weight


def replace_prelus(network: nn.Module) -> nn.Module:
    """Replace torch's PReLU layers with one weight per channel by those of this file, in place. Returns the network."""
    replace_layers(network, _replacement)
    return network


def _replacement(layer: nn.Module) -> PReLU | None:
    if type(layer) is not nn.PReLU or layer.num_parameters == 1:
        return None
    new = PReLU(layer.num_parameters)
    new.weight = layer.weight
    return new
