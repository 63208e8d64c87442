"""Randomly changed files are read in a separate process, which is monitored."""

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import WARM, size
from faulty_readers import FAULTY
from fuzz_child import run
from fuzz_targets import TARGETS

_LONG = {
    "record files": 100_000, "indexes of record files": 100_000, ".bin sets": 100_000, "metadata.pt": 100_000,
    "overrides of the config": 100_000, "lists of NIST": 100_000,
}  # fmt: skip


def failures(name: str, times: int, kept: Path) -> list[str]:
    """Return the reports about inputs that failed. These inputs are copied to the folder `kept`."""
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # the files are written up to 100,000 times
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = WARM.Process(target=run, args=(name, times, Path(folder), theirs))
        process.start()
        theirs.close()
        failed = []
        try:
            while ours.poll(60):
                failed += filter(None, [ours.recv()])
            failed.append("no report for a minute")
            process.kill()
        except EOFError:
            process.join()
            if process.exitcode:
                failed.append(f"the process ended with code {process.exitcode}")
        if failed:  # they are failed-N-FILE or, after a crash or a hang, still have their own names
            shutil.copytree(folder, kept)
            print(*failed, f"the inputs are in {kept}", sep="\n")
    return failed


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(tmp_path, tried, name):
    times = size(1000, _LONG.get(name, 20_000))
    failed = failures(name, times, tmp_path / "inputs")
    tried(f"changed {name}: read or refused", times, times - len(failed))


@pytest.mark.parametrize("fault", FAULTY)
def test_the_monitor_detects_a_faulty_reader(tmp_path, fault):
    assert fault in failures(fault, 2, tmp_path / "inputs")[0]
