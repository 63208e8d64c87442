"""Worker processes that are killed, fail, get stuck or cannot send what they read end the run with a reason."""

import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from conftest import ROOT
from training_sets import write_folder_set

from data import workers
from data.folder_set import FolderDataset
from data.loader import GlobalOrder, TrainingLoader
from data.workers import decoded_batches
from utils.distributed import killed_worker, process_group, watch_workers
from utils.errors import InputError, WorkerError

CPU = torch.device("cpu")


@pytest.fixture
def worker():
    """A watched worker process that runs for a minute."""
    process = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    process.start()
    watch_workers([process])
    yield process
    process.kill()
    process.join()
    watch_workers([])


def test_a_killed_worker_is_named_with_its_signal(worker):
    assert killed_worker() is None
    worker.kill()
    worker.join()
    assert f"process {worker.pid} was killed by signal 9" in killed_worker()


def test_a_worker_that_ended_normally_was_not_killed():
    process = multiprocessing.get_context("fork").Process(target=int)
    process.start()
    process.join()
    watch_workers([process])
    assert killed_worker() is None


def test_an_error_after_a_worker_was_killed_names_the_worker(worker):
    message = rf"process {worker.pid} was killed by signal 9; .*num_workers"
    with pytest.raises(WorkerError, match=message), process_group("cpu"):
        worker.kill()
        worker.join()
        raise RuntimeError("any text")


def test_an_error_without_a_killed_worker_is_raised_unchanged(worker):
    with pytest.raises(RuntimeError, match="any text"), process_group("cpu"):
        raise RuntimeError("any text")


@pytest.fixture
def torch_notices_ended_workers():
    """After the test, torch is told again when a worker ends, which killing stuck workers switches off."""
    yield
    torch.utils.data._utils.signal_handling._SIGCHLD_handler_set = False


class Reads(torch.utils.data.Dataset):
    """A set whose item 3 is read by `read`."""

    def __init__(self, read):
        self.read = read

    def __getitem__(self, positions):
        return self.read() if 3 in positions else torch.zeros(len(positions), 4)


def batches_read(read, num_workers=2):
    return [positions for positions, _ in decoded_batches(Reads(read), [[0], [1], [2], [3], [4]], num_workers)]


def compute_for_three_seconds():
    end = time.monotonic() + 3
    while time.monotonic() < end:
        np.ones(1000).sum()
    return torch.zeros(1, 4)


@pytest.mark.usefixtures("torch_notices_ended_workers")
def test_a_worker_that_is_stuck_ends_the_run_and_a_slow_one_is_waited_for(monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    assert len(batches_read(compute_for_three_seconds)) == 5
    start = time.monotonic()
    with pytest.raises(WorkerError, match=r"delivered no batch for 2 s .*number of workers to 0"):
        batches_read(lambda: time.sleep(600))
    assert time.monotonic() - start < 10
    with pytest.raises(WorkerError):
        batches_read(lambda: os.kill(os.getpid(), signal.SIGSTOP))


def test_stuck_workers_end_the_run_within_a_minute():
    assert 4 * workers.PATIENCE < 60


class Stops(torch.utils.data.Dataset):
    """Reading an item stops the worker if the folder has an empty file with its number, which is then removed."""

    def __init__(self, folder, *items):
        self.folder = folder
        self.add(*items)

    def add(self, *items):
        for item in items:
            (self.folder / f"{item}.stop").touch()

    def __getitem__(self, positions):
        for position in positions:
            try:
                (self.folder / f"{position}.stop").unlink()
            except FileNotFoundError:
                continue
            os.kill(os.getpid(), signal.SIGSTOP)
        return torch.tensor([[int(position)] for position in positions])


@pytest.mark.parametrize("num_workers", [1, 2])
def test_stuck_workers_are_replaced_and_no_batch_is_lost_or_read_twice(tmp_path, monkeypatch, capfd, num_workers):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    read = decoded_batches(Stops(tmp_path, 0, 6), [[0], [1, 2], [3], [4], [5], [6], [7]], num_workers)
    assert [images.flatten().tolist() for _, images in read] == [[0], [1, 2], [3], [4], [5], [6], [7]]
    assert not list(tmp_path.glob("*.stop"))
    assert capfd.readouterr().err.count("the worker processes did nothing for 1 s and are replaced") == 2
    assert not multiprocessing.active_children()


def test_training_goes_on_with_new_workers_where_the_stuck_ones_were(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PATIENCE", 0.5)
    folder = FolderDataset(write_folder_set(tmp_path / "set", {"a": 12, "b": 12}))
    order = GlobalOrder(24, 4, seed=0)
    unstopped, wanted = TrainingLoader(folder, order, 0, CPU), []
    for epoch in (0, 1):
        wanted += [batch.images for batch in epoch_of(unstopped, order, epoch)]
    read_batch, stops = FolderDataset.read_batch, Stops(tmp_path)

    def read(dataset, positions, images):
        stops[positions]
        return read_batch(dataset, positions, images)

    monkeypatch.setattr(FolderDataset, "read_batch", read)
    loader, found = TrainingLoader(folder, order, 2, CPU), []
    for epoch, batch_to_stop in ((0, 0), (1, 3)):
        order.start_at(epoch, 0)
        stops.add([plan.positions for plan in order][batch_to_stop][1])
        found += [batch.images for batch in epoch_of(loader, order, epoch)]
        assert not list(tmp_path.glob("*.stop"))
    assert len(found) == 12 and all(map(torch.equal, found, wanted))


def epoch_of(loader, order, epoch):
    order.start_at(epoch, 0)
    yield from loader


def test_a_worker_that_cannot_send_its_batch_ends_the_run(capfd):
    with pytest.raises(WorkerError, match=r"the worker process \d+ failed"):
        batches_read(lambda: lambda: "functions cannot be pickled")
    assert "cannot send its batch" in capfd.readouterr().err


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_of_the_system_in_a_worker_is_raised_unchanged(num_workers):
    def read():
        raise PermissionError(13, "Permission denied", "the file")

    with pytest.raises(PermissionError, match=r"^\[Errno 13\] Permission denied: 'the file'$"):
        batches_read(read, num_workers)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_file_that_vanishes_during_training_is_named(tmp_path, num_workers):
    folder = FolderDataset(write_folder_set(tmp_path / "set", {"a": 4, "b": 4}))
    (tmp_path / "set" / "b" / "002.png").unlink()
    with pytest.raises(InputError, match=r"b/002.png: .*was there at the start"):
        list(TrainingLoader(folder, GlobalOrder(8, 4, seed=0), num_workers, CPU))


def test_training_and_evaluation_need_no_shared_memory_and_no_sockets(small_run, tmp_path):
    """/dev/shm has 64 MB in Docker, and a TMPDIR of more than 107 characters is too long for a socket."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    # Files, also those in /dev/shm, may have 200 kB, which is less than a batch. Checkpoints are larger.
    run = [sys.executable, str(ROOT / "train/train_AdaDistill.py"), *small_run, f"output={tmp_path / 'run'}"]
    limited = ["bash", "-c", 'ulimit -f 200; exec "$0" "$@"', *run, "num_workers=2", "val_num_workers=2"]
    limited += ["run_eval_at_start=True", "max_steps=1"]
    done = subprocess.run(limited, env=os.environ | {"TMPDIR": str(long)}, capture_output=True, text=True, timeout=100)
    assert "evaluation at step 0" in done.stdout and "the checkpoint of step 1 is not saved" in done.stderr
