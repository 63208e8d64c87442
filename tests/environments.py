"""Environments for packages that cannot be installed beside those of this repository, in the temporary folder."""

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT

PYTHON = "python3.11"


def environment(requirements: str, package: str) -> Callable[..., str]:
    """run(script, *arguments): run a script in an environment with the packages of requirements/`requirements`.

    It returns the script's output. The environment is created if it does not exist; one process does this, and others
    wait. Skips the test if it cannot be created. package: what is imported then, to see whether it works.
    """
    file = ROOT / "requirements" / requirements
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    folder = Path(tempfile.gettempdir()) / f"adadistill-{file.stem}-{digest}"
    ready, python = folder / "ready", str(folder / "bin" / "python")
    with open(folder.with_name(f"{folder.name}.lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not ready.exists():
            if shutil.which(PYTHON) is None:
                pytest.skip(f"{package} needs a {PYTHON} on PATH")
            shutil.rmtree(folder, ignore_errors=True)
            for command in (
                [PYTHON, "-m", "venv", str(folder)],
                [python, "-m", "pip", "install", "-q", "-r", str(file)],
                [python, "-c", f"import {package}"],
            ):
                done = _run(command)
                if done.returncode:
                    reason = done.stderr.strip().splitlines()[-1:]
                    pytest.skip(f"{file.stem} cannot be installed: {' '.join(command)}: {reason}")
            ready.touch()

    def run(script: str, *arguments: str | os.PathLike) -> str:
        done = _run([python, "-c", script, *map(str, arguments)])
        assert done.returncode == 0, done.stderr
        return done.stdout

    return run


def _run(command: list[str]) -> subprocess.CompletedProcess:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONHOME")}
    return subprocess.run(command, env=clean, capture_output=True, text=True)
