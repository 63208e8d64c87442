"""Describe how a result was made: the command, the commit, the versions and the machine."""

import os
import platform
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from utils.distributed import world_size


def processor() -> str:
    """The name of the CPU, as Linux knows it, and its number of cores."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line for line in lines if line.startswith("model name")]
    name = names[0].split(": ", 1)[-1] if names else platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} core(s)"


def code_version() -> str:
    """The commit of this repository, with "-dirty" if files were changed since; "unknown" without git."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():  # git would look for a repository above
        return "unknown"
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, encoding="utf-8").stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def run_facts() -> dict[str, str]:
    """The command, the commit, the versions and the machine, by name."""
    import cv2  # here, because data/__init__.py must set a limit before OpenCV is loaded

    device = torch.cuda.get_device_name() if torch.cuda.is_available() else processor()
    versions = {"torch": torch.__version__, "NumPy": np.__version__, "OpenCV": cv2.__version__}
    listed = ", ".join(f"{name} {version}" for name, version in versions.items())
    return {
        "command": shlex.join(sys.argv),
        "commit": code_version(),
        "versions": f"Python {platform.python_version()}, {listed}",
        "device": f"{device}, {world_size()} rank(s)",
    }


def describe_run() -> str:
    """The facts of `run_facts`, one line each, for the top of logs."""
    return "\n".join(f"{name}: {text}" for name, text in run_facts().items())
