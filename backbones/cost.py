"""What a network costs: its parameters and its multiplications."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def describe_cost(network: nn.Module) -> str:
    """Parameters and multiplications per image, in words. The network is on the CPU and in training mode."""
    with FlopCounterMode(display=False) as counter:
        network.eval()(torch.zeros(1, 3, 112, 112))
    network.train()
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return (
        f"{parameters / 1e6:.2f} M parameters, {counter.get_total_flops() / 2e9:.3f} G multiplications per image "
        "(convolutions and matrix products; torch.utils.flop_counter)"
    )
