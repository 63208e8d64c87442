"""Functions that run the training scripts, read their output, and compare two runs."""

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import torch
from conftest import run_script

SCRIPTS = ["train/train_AdaDistill.py", "train/train_standalone.py"]
TIME_FIELDS = {"time", "images_per_second"}


def heed_signals() -> None:
    """A `preexec_fn`: a run heeds SIGINT and SIGHUP, also if the tests were started with nohup or in the background."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def train(script: str, settings: list[str], output: Path, *more: str, ranks: int = 0) -> str:
    """Run a training script, which must succeed without a warning of any library. Returns its standard output."""
    done = run_script(script, *settings, f"output={output}", *more, ranks=ranks)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not re.search("warning|error", done.stderr, re.IGNORECASE), done.stderr
    return done.stdout


def metrics(output: Path) -> list[dict]:
    """Read the lines of metrics.jsonl, without the fields that depend on time."""
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key not in TIME_FIELDS} for line in lines]


def tensors(value, name=""):
    """Yield every tensor and number of a nested structure, with its name."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield from tensors(item, f"{name}.{key}")
    elif isinstance(value, list | tuple):
        for number, item in enumerate(value):
            yield from tensors(item, f"{name}.{number}")
    else:
        yield name, value


def assert_same_checkpoint(one: Path, other: Path, step: int) -> None:
    """Check that two output folders have bit-equal checkpoints of a step. The settings in them may differ."""
    for part in ("backbone.pth", "header.pth", "state.pth"):
        contents = (torch.load(output / f"{step}{part}", weights_only=True) for output in (one, other))
        first, second = (
            {name: item for name, item in tensors(content) if not name.startswith((".run.", ".may_change."))}
            for content in contents
        )
        assert first.keys() == second.keys()
        for name, item in first.items():
            equal = torch.equal(item, second[name]) if isinstance(item, torch.Tensor) else item == second[name]
            assert equal, f"{part}{name} differs"


def value(settings: list[str], key: str) -> str:
    """Return the value of a key in a list of overrides."""
    return dict(setting.split("=") for setting in settings)[key]


def descendants(process: int) -> list[int]:
    """Return the child processes of a process, their children, and so on."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process:
            found += [int(folder.name), *descendants(int(folder.name))]
    return found


def send(number: int, processes: list[int]) -> None:
    """Send a signal to the processes that still exist."""
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def wait_for_step(process: subprocess.Popen, output: Path, seconds: float) -> None:
    """Wait until the run has trained one more step, or has ended, or `seconds` have passed."""
    log = output / "metrics.jsonl"
    before, deadline = log.stat().st_mtime_ns if log.exists() else 0, time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.stat().st_mtime_ns != before and log.stat().st_size:
            return
        time.sleep(0.02)


def refused(script: str, *arguments: str, words: str) -> None:
    """Run a script that must end with exit code 2 and one clear error; `words`: a regular expression for it."""
    done = run_script(script, *arguments)
    assert done.returncode == 2 and re.search(words, done.stderr) and "Traceback" not in done.stderr, done.stderr
