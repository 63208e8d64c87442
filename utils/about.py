"""Describe how a result was made: the command, the versions and the machine."""

import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from utils.distributed import world_size


def _processor() -> str:
    """The name of the CPU, as Linux knows it, and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    name = names[0].split(": ", 1)[-1] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} core(s)"


def describe_run() -> str:
    """The command, the versions and the machine, for the top of logs and results."""
    import cv2  # here, because data/__init__.py must set a limit before OpenCV is loaded

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"torch": torch.__version__, "NumPy": np.__version__, "OpenCV": cv2.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"command: {shlex.join(sys.argv)}\n"
        f"versions: Python {platform.python_version()}, {listed}\n"
        f"device: {device}, {world_size()} rank(s)"
    )
