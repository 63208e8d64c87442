"""Data types that networks compute in."""

import torch
from torch import nn

_TYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def compute_type(name: str, device: torch.device) -> torch.dtype:
    """The torch type `name`. "auto": float32 on CPUs, bfloat16 on GPUs that support it, float16 on other GPUs."""
    if name == "auto":
        if device.type == "cpu":
            return torch.float32
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return _TYPES[name]


def forbid_tf32() -> None:
    """Compute float32 as float32 on GPUs. By default, torch rounds inputs of convolutions to TF32, to 10 bits."""
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False  # off by default, but an environment variable can switch it on


def cast_products(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Convert the weights of convolutions, linear layers and PReLUs to `dtype`, in place. Returns the network.

    For frozen networks: autocast would convert the weights in every pass. Normalisations stay in float32, as with
    autocast, and so do parts of the network with the attribute `always_float32`, which switch autocast off.
    """
    if isinstance(network, nn.Conv2d | nn.Linear | nn.PReLU):
        network.to(dtype)
    for part in network.children():
        if not getattr(part, "always_float32", False):
            cast_products(part, dtype)
    return network
