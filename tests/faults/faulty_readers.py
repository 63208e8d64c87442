"""Readers that do forbidden things, to test the monitor of fuzzing.py."""

import ctypes
import os
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from fuzzing import Target
from mutation import Seed

from utils.errors import InputError

# Readers with one fault each. The key is a part of the message that the monitor must report.
FAULTY: dict[str, Callable[[Path], Any]] = {
    "ended with code": lambda folder: os.abort(),
    "took more than": lambda folder: time.sleep(60),
    "memory grew by": lambda folder: bytearray(b"x" * 2**27),
    "ValueError": lambda folder: int("x"),
    "os.system": lambda folder: os.system("true"),
    "executed code of": lambda folder: eval("1 + 1"),  # noqa: S307
    "for writing": lambda folder: (folder / "x").touch(),
    "subprocess.Popen": lambda folder: subprocess.run(["true"]),
    "socket": lambda folder: socket.socket(),
    "ctypes": lambda folder: ctypes.CDLL("libc.so.6"),
    "imported": lambda folder: __import__("this"),
    "asked for more than": lambda folder: _allocate_too_much(),
}


def _allocate_too_much() -> None:
    try:
        np.empty(2**31, np.uint8)
    except MemoryError as error:
        raise InputError("broken") from error


def faulty_target(fault: Callable[[Path], Any]) -> Target:
    """Make a target whose seed is read without a fault, and any other content with the fault."""

    def read(folder: Path) -> None:
        if (folder / "file").read_bytes() != b"the seed":
            fault(folder)

    return Target(read, "none.py", [Seed("file", b"the seed")])
