"""High load: constant memory in long runs, no leaked file descriptors, sets larger than the memory."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from conftest import LONG, ROOT, size
from test_interruption import RANKS, TRAIN, descendants

from data.recordio import IndexedRecordReader
from demo.make_demo_data import encoded_face


def resident(process: int) -> int:
    """Return the bytes of private memory of a process; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty", "Private_Clean")))


@pytest.mark.timeout(3600)
@pytest.mark.skipif(not LONG, reason="only in the long form: FAULTS=long")
def test_memory_stays_constant_over_two_thousand_steps_with_verification(small_run, tmp_path, tried):
    """In every process, the last tenth of the samples exceeds the fourth tenth by less than 2 %."""
    length = ["num_epoch=340", "max_steps=2000", "val_eval_every_n_epoch=20", "num_workers=2", "log_every=10"]
    command = [sys.executable, str(ROOT / TRAIN), *small_run, *RANKS[1], *length, f"output={tmp_path}"]
    with open(tmp_path / "output.txt", "wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
    samples: dict[int, list[int]] = {}
    while process.poll() is None:
        for pid in [process.pid, *descendants(process.pid)]:
            if used := resident(pid):
                samples.setdefault(pid, []).append(used)
        time.sleep(0.25)
    assert process.returncode == 0, (tmp_path / "output.txt").read_text()[-3000:]
    longest = max(map(len, samples.values()))
    lasting = [sizes for sizes in samples.values() if len(sizes) > longest / 2]  # no workers of evaluations
    assert len(lasting) == 3
    growth = []
    for sizes in lasting:
        tenth = len(sizes) // 10
        growth.append(np.median(sizes[-tenth:]) / np.median(sizes[3 * tenth : 4 * tenth]) - 1)
    print("growth of the resident memory:", ", ".join(f"{100 * part:.2f} %" for part in growth))
    tried("processes with constant memory over 2,000 steps", 3, sum(part < 0.02 for part in growth))


def test_opening_and_closing_readers_leaks_nothing(small_run, tried):
    folder = Path(dict(setting.split("=") for setting in small_run)["rec"])
    times = size(1000, 10_000)

    def open_and_close() -> None:
        reader = IndexedRecordReader(folder / "train.rec", folder / "train.idx")
        reader.read_batch(reader.keys[:4])

    for _ in range(50):
        open_and_close()
    descriptors, memory = len(os.listdir("/proc/self/fd")), resident(os.getpid())
    for _ in range(times):
        open_and_close()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    assert resident(os.getpid()) < memory + 4_000_000
    tried("opening and closing the record reader without a leak", times, times)


@pytest.mark.timeout(1200)
def test_a_set_larger_than_the_memory_is_evaluated(tmp_path, tried):
    """Each process may allocate, beyond what a small set needs, a quarter of the size of the decoded images."""
    import datasets
    import torch

    images, decoded = size(3_000, 30_000), 112 * 112 * 3
    faces = [encoded_face((0, number, 0, 0.3)) for number in range(8)]
    for name, count in (("small", 512), ("large", images)):
        rows = {"image": [{"bytes": faces[n % 8], "path": None} for n in range(count)], "index": list(range(count))}
        features = datasets.Features({"image": datasets.Image(), "index": datasets.Value("int64")})
        datasets.Dataset.from_dict(rows, features).save_to_disk(tmp_path / name)
        torch.save({}, tmp_path / name / "metadata.pt")
    code = (ROOT / "tests/faults/embed_large_set.py", str(tmp_path), str(images * decoded // 4))
    done = subprocess.run([sys.executable, *map(str, code)], capture_output=True, text=True, timeout=1000)
    assert done.returncode == 0 and f"({images}, 16)" in done.stdout, done.stdout + done.stderr
    tried(f"a set of {images:,} images in a quarter of the memory of its images", 1, 1)
