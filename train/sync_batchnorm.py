"""BatchNorm with the statistics of the global batch: torch's own on GPUs, this one on CPUs, where torch has none."""

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.nn.modules.batchnorm import _BatchNorm

from utils.distributed import world_size


class SyncBatchNorm(_BatchNorm):
    """Like nn.BatchNorm1d and 2d, with mean and variance over [ranks * B, H, W]. All ranks have the same batch size."""

    def _check_input_dim(self, input: Tensor) -> None:
        """Accept any [B, C, ...]."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or world_size() == 1:
            return super().forward(input)
        dims = [0, *range(2, input.dim())]
        shape = [1, -1] + [1] * (input.dim() - 2)
        count = world_size() * input.numel() // input.shape[1]
        mean = all_reduce(input.float().sum(dims)) / count
        centered = input.float() - mean.view(shape)
        variance = all_reduce(centered.square().sum(dims)) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        y = centered * torch.rsqrt(variance + self.eps).view(shape)
        if self.affine:
            y = y * self.weight.view(shape) + self.bias.view(shape)
        return y.to(input.dtype)


def synchronise(network: nn.Module, device: torch.device) -> nn.Module:
    """Replace the BatchNorm layers by synchronised ones. Key names and weights stay the same."""
    if not dist.is_initialized():
        return network
    if device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _BatchNorm):
                layer = SyncBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
                layer.load_state_dict(child.state_dict())
                for own, old in zip(layer.parameters(), child.parameters(), strict=True):
                    own.requires_grad = old.requires_grad
                setattr(parent, name, layer)
    return network
