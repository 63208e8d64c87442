"""The process that test_changed_files.py starts and monitors."""

import os
from multiprocessing.connection import Connection
from pathlib import Path

from faulty_readers import FAULTY, faulty_target
from fuzz_targets import TARGETS
from fuzzing import fuzz


def run(name: str, times: int, folder: Path, reports: Connection) -> None:
    """Fuzz the target of this name, from TARGETS or FAULTY, and send the reports."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain about every broken image
    target = TARGETS[name](folder) if name in TARGETS else faulty_target(FAULTY[name])
    fuzz(target, times, 1, folder, reports.send)
