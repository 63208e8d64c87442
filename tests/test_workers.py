"""A killed worker process is recognised by its exit code, not by the text of an error."""

import multiprocessing
import time

import pytest

from utils.distributed import killed_worker, process_group, watch_workers
from utils.errors import InputError


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
    with pytest.raises(InputError, match=message), process_group("cpu"):
        worker.kill()
        worker.join()
        raise RuntimeError("any text")


def test_an_error_without_a_killed_worker_is_raised_unchanged(worker):
    with pytest.raises(RuntimeError, match="any text"), process_group("cpu"):
        raise RuntimeError("any text")
