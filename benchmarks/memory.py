"""The most memory that this process, or the GPU, held since it was asked to forget."""

import ctypes
from pathlib import Path

import torch


def forget_peak() -> None:
    """From now on `peak` counts anew (Linux with glibc; on a GPU what torch allocates)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # what was freed and kept would serve again, uncounted
        Path("/proc/self/clear_refs").write_text("5")


def peak() -> int:
    """Bytes. Not from getrusage, whose peak begins with what the parent process held."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])
