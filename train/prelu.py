"""PReLU whose backward pass is several times as fast on CPUs. torch's was a third of a training step.

torch computes the gradients one number at a time, and stores that of the weight once per number before it is summed.
Here, a few vectorised operations do it for a part of the batch that fits into the caches, then for the next one.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NUMBERS_PER_PART = 2**18  # 1 MB in float32


class PReLU(nn.PReLU):
    """torch's PReLU with one weight per channel, for channels-last images. The gradients differ by rounding only."""

    def forward(self, input: Tensor) -> Tensor:
        if not input.is_contiguous(memory_format=torch.channels_last):
            return super().forward(input)
        return _PReLU.apply(input, self.weight)


class _PReLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.prelu(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        by_x = torch.empty_like(gradient)
        by_weight = torch.zeros_like(weight)
        slope = weight.to(x.dtype)
        rows = max(1, NUMBERS_PER_PART // len(weight))
        parts = [tensor.permute(0, 2, 3, 1).view(-1, len(weight)).split(rows) for tensor in (x, gradient, by_x)]
        memory = torch.empty_like(parts[0][0])
        for x_part, gradient_part, by_x_part in zip(*parts, strict=True):
            positive = memory[: len(x_part)]
            # The gradient where x > 0, else 0. The public functions for this take two passes.
            torch.ops.aten.threshold_backward.grad_input(gradient_part, x_part, 0, grad_input=positive)
            torch.lerp(positive, gradient_part, slope, out=by_x_part)  # slope * gradient where x <= 0
            negative = torch.sub(gradient_part, positive, out=positive)
            by_weight += negative.mul_(x_part).sum(0, dtype=weight.dtype)
        return by_x, by_weight


def prepare(network: nn.Module) -> nn.Module:
    """Replace torch's PReLU layers with one weight per channel by those of this file, in place. Returns the network."""
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.PReLU and child.num_parameters > 1:
                layer = PReLU(child.num_parameters)
                layer.weight = child.weight
                setattr(parent, name, layer)
    return network
