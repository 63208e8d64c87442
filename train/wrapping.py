"""What training adds to the bare networks: DistributedDataParallel (DDP) and torch.compile."""

import importlib.util
import inspect
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from utils.distributed import world_size

# DDP's argument for "do not send rank 0's buffers before every forward pass". Newer versions of torch renamed it.
_KEYWORDS = inspect.signature(DistributedDataParallel).parameters
_SEND_BUFFERS = "forward_sync_buffers" if "forward_sync_buffers" in _KEYWORDS else "broadcast_buffers"
BUCKETS = 8  # gradients are sent in about 8 parts, so that sending overlaps with backward, also in small networks


def share_gradients(module: nn.Module, device: torch.device) -> nn.Module:
    """Wrap a module in DDP if there are several ranks and it has weights to train; otherwise return the module."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    megabytes = sum(parameter.nbytes for parameter in module.parameters()) / 2**20
    shared = DistributedDataParallel(
        module,
        device_ids=[device.index] if device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        bucket_cap_mb=max(1, megabytes / BUCKETS),
        **{_SEND_BUFFERS: False},
    )
    _fix_buckets(shared)
    return shared


class _Sum(nn.Module):
    def forward(self, tensors: list[Tensor]) -> Tensor:
        return sum(tensor.sum() for tensor in tensors)


def _fix_buckets(shared: DistributedDataParallel) -> None:
    """Make the first step send gradients in the same order as all later ones, so that a resumed run is bit-equal.

    DDP sorts the gradients into new buckets after its first backward pass. On three or more ranks, the order in which
    the ranks' numbers are added depends on their places in a bucket. So the first backward pass is that of a sum of all
    weights. It needs no images, and reaches the last weights first, as the backward pass of a network does.
    """
    network, shared.module = shared.module, _Sum()
    shared([parameter for parameter in network.parameters() if parameter.requires_grad]).backward()
    shared.module = network
    network.zero_grad(set_to_none=True)


def without_sharing(*modules: nn.Module) -> AbstractContextManager:
    """A context in which modules in DDP accumulate gradients locally, without averaging them over the ranks."""
    stack = ExitStack()
    for module in modules:
        if isinstance(module, DistributedDataParallel):
            stack.enter_context(module.no_sync())
    return stack


def maybe_compile(module: nn.Module, setting: str, device: torch.device) -> nn.Module:
    """The module, compiled if `should_compile`. Each size of its input is compiled separately, at first use.

    The module itself stays as it is, for inputs of other sizes.
    """
    return torch.compile(module, dynamic=False) if should_compile(setting, device) else module


def should_compile(setting: str, device: torch.device) -> bool:
    """Whether to compile. setting: "on", "off", or "auto" (on GPUs, if everything that the compiler needs is there)."""
    if setting != "auto":
        return setting == "on"
    return device.type == "cuda" and not missing_for_compiling(device)


def missing_for_compiling(device: torch.device) -> list[str]:
    """List what torch.compile needs for this GPU but does not find."""
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    needed = {
        "a GPU of compute capability 7.0 or higher": torch.cuda.get_device_capability(device) >= (7, 0),
        "Triton": importlib.util.find_spec("triton") is not None,
        "a C compiler": any(shutil.which(name) for name in compilers if name),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return [name for name, present in needed.items() if not present]
