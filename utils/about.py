"""What a result was made with: the command, the versions and the machine."""

import os
import platform
import shlex
import sys
from pathlib import Path

import numpy as np
import torch

from utils.distributed import world_size


def _processor() -> str:
    """The CPU's name, where Linux knows it, and its cores."""
    about = Path("/proc/cpuinfo")
    names = [line for line in about.read_text().splitlines() if line.startswith("model name")] if about.exists() else []
    name = names[0].split(": ", 1)[-1] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} core(s)"


def describe_run() -> str:
    """The command, the versions and the machine, for the top of logs and results."""
    import cv2  # not above: data/__init__.py must set a limit before OpenCV is loaded

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else _processor()
    versions = {"torch": torch.__version__, "NumPy": np.__version__, "OpenCV": cv2.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"command: {shlex.join(sys.argv)}\n"
        f"versions: Python {platform.python_version()}, {listed}\n"
        f"device: {device}, {world_size()} rank(s)"
    )
