"""Peak memory of this process, or of the GPU if there is one."""

import ctypes
from pathlib import Path

import torch


def reset_peak() -> None:
    """Reset the peak to the memory that is allocated now. On CPUs, this needs Linux with glibc."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    else:
        ctypes.CDLL(None).malloc_trim(0)  # otherwise freed memory that glibc kept would not count when it is reused
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def peak_bytes() -> int:
    """Return the largest number of bytes that were allocated at a time since `reset_peak`."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else host_peak_bytes()


def host_peak_bytes() -> int:
    """Return the largest number of bytes in host memory that this process has used at a time. Needs Linux."""
    # getrusage would be wrong: its peak includes the memory of the parent process.
    return 1024 * int(Path("/proc/self/status").read_text(encoding="utf-8").split("VmHWM:")[1].split()[0])
