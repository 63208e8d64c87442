"""Files by strangers: changed at random, made to exhaust memory, to execute something, or to name other files."""

import multiprocessing
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from conftest import WARM, size
from strangers import TARGETS, run

_LONG = {
    "record files": 100_000, "indexes of record files": 100_000, ".bin sets": 100_000, "metadata.pt": 100_000,
    "overrides of the config": 100_000, "lists of NIST": 100_000,
}  # fmt: skip


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", TARGETS)
def test_changed_files_are_read_or_refused(tmp_path, tried, name):
    times = size(1000, _LONG.get(name, 20_000))
    memory = "/dev/shm" if os.path.isdir("/dev/shm") else None  # files that are written 100,000 times
    with tempfile.TemporaryDirectory(dir=memory) as folder:
        ours, theirs = multiprocessing.Pipe(duplex=False)
        process = WARM.Process(target=run, args=(name, times, Path(folder), theirs))
        process.start()
        theirs.close()
        failed = []
        try:
            while ours.poll(60):
                failed.append(ours.recv())
            failed.append("a minute without a word")
            process.kill()
        except EOFError:
            process.join()
            if process.exitcode:
                failed.append(f"the process ended with code {process.exitcode}")
        if failed:  # what made it fail is kept: under failed-N-FILE, or, after a crash or a hang, as it stands
            kept = tmp_path / "inputs"
            shutil.copytree(folder, kept)
            print(*failed, f"the inputs are in {kept}", sep="\n")
    tried(f"changed {name}: read or refused", times, times - len(failed))
