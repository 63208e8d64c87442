"""Peak memory of this process, or of the GPU if there is one."""

import ctypes
from pathlib import Path

import torch


def reset_peak() -> None:
    """Let `peak_bytes` start again from what is allocated now. On CPUs it needs Linux with glibc."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but kept would not count when it is used again
        Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    """The most bytes that were allocated since `reset_peak`."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    # Not from getrusage, whose peak starts with what the parent process held.
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
