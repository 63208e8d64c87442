"""Worker processes that read and decode batches: how they start, fail and end.

Workers send arrays, not tensors. torch sends tensors through /dev/shm, which is often too small in containers, and
through a socket in the temporary folder, whose path may be too long.
"""

import atexit
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from multiprocessing.process import BaseProcess
from multiprocessing.queues import Queue
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from utils.distributed import killed_worker, watch_workers
from utils.errors import InputError, WorkerError, describe_error

# Seconds without a batch until the workers are checked. If they then do nothing for as long again, they are stuck.
PATIENCE = 12.5


def decoded_batches(
    images: Dataset, batches: Sequence[Sequence[int]] | Sampler, num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield each of `batches` with its images, uint8 [n, 112, 112, 3], decoded by `num_workers` processes.

    images: a dataset with images[positions] -> uint8 [n, 112, 112, 3]. batches: lists of positions. An InputError or
    OSError in a worker is raised here unchanged.
    """
    source, num_workers = _WithPositions(images), min(num_workers, len(batches))

    def loader_after(done: int) -> DataLoader:
        return worker_loader(source, islice(batches, done, None), num_workers)

    for positions, decoded in read_items(loader_after(0), loader_after):
        if isinstance(decoded, np.ndarray):
            decoded = torch.from_numpy(decoded)
            decoded = decoded.pin_memory() if pin_memory else decoded
        yield positions, decoded


def worker_loader(dataset: Dataset, items: Iterable, num_workers: int, **options: Any) -> DataLoader:
    """A DataLoader that yields dataset[item] for each of `items`, unchanged, read by `num_workers` processes.

    The processes are forks, so they share the memory of the main process. options: more arguments of DataLoader.
    """
    if num_workers:
        options |= {"multiprocessing_context": "fork", "timeout": PATIENCE, "worker_init_fn": init_worker}
    return DataLoader(
        dataset, batch_size=None, sampler=items, collate_fn=keep_batch, num_workers=num_workers, **options
    )


class _WithPositions(Dataset):
    """Returns (positions, images[positions] as an array), or an error, so that the main process can raise it."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitem__(self, positions: Sequence[int]) -> tuple[Sequence[int], Any] | Exception:
        try:
            images = self.images[positions]
        except (InputError, OSError) as error:
            return error
        return positions, images.numpy() if isinstance(images, Tensor) else images


def read_items(loader: DataLoader, loader_after: Callable[[int], DataLoader]) -> Iterator:
    """Yield the items of `loader`. If a worker sent an InputError or OSError instead of an item, raise it.

    Workers are stuck if for 25 s they neither deliver a batch nor use processor time: the disk does not answer, or the
    process that was forked waits for a lock that a thread of the main process held. Then loader_after(n) gives the
    items after the first n, with new workers. If these are stuck too, WorkerError is raised, as for workers that were
    killed or failed. Slow workers are waited for.
    """
    done, replaced = 0, list[BaseProcess]()
    iterator, workers = _start(loader, replaced)
    work_before = math.nan
    while True:
        try:
            item = next(iterator)
        except StopIteration:
            return
        except RuntimeError as error:
            if killed := killed_worker():
                raise WorkerError(killed) from error
            if "timed out" not in str(error):
                raise
            work = _processor_time(workers)
            if not work - work_before <= 1:
                work_before = work
                continue
            if replaced:
                _kill_workers()
                raise WorkerError(
                    f"the worker processes delivered no batch for {4 * PATIENCE:.0f} s and used no processor time; the "
                    "disk may not respond: check that the data can be read, or set the number of workers to 0 to see "
                    "where it stops"
                ) from error
            print(
                f"the worker processes did nothing for {2 * PATIENCE:.0f} s and are replaced",
                file=sys.stderr,
                flush=True,
            )
            replaced = _abandon(iterator)
            loader = loader_after(done)
            iterator, workers = _start(loader, replaced)
            work_before = math.nan
            continue
        done, replaced, work_before = done + 1, [], math.nan
        if isinstance(item, InputError | OSError):
            try:
                raise item
            finally:
                del item  # its traceback refers to this frame: a cycle would keep the workers alive
        yield item


def _start(loader: DataLoader, replaced: Sequence[BaseProcess]) -> tuple[Iterator, list[BaseProcess]]:
    """An iterator over the items, and all workers of this process but those that were `replaced`."""
    try:
        iterator = iter(loader)  # starts the workers
    except OSError as error:
        raise InputError(
            f"cannot start worker processes ({describe_error(error)}); they need a few kB in /dev/shm; give the "
            "container more shared memory, or set the number of workers to 0"
        ) from error
    workers = [worker for worker in multiprocessing.active_children() if worker not in replaced]
    watch_workers(workers)
    return iterator, workers


def _abandon(iterator: Iterator) -> list[BaseProcess]:
    """Kill the workers of a DataLoader's iterator, and return them. They may take a while to end."""
    torch._C._remove_worker_pids(id(iterator))  # otherwise torch reports their end as a failure
    iterator._worker_pids_set = False
    for worker in iterator._workers:
        worker.kill()
    return iterator._workers


def _processor_time(workers: Iterable[BaseProcess]) -> float:
    """The processor time that the workers have used so far, in clock ticks; NaN if the system does not say."""
    try:
        stats = [Path(f"/proc/{worker.pid}/stat").read_bytes().rpartition(b")")[2].split() for worker in workers]
    except OSError:
        return math.nan
    return float(sum(int(user) + int(system) for *_, user, system in (stat[:13] for stat in stats)))


def keep_batch(batch: object) -> object:
    """The `collate_fn` for datasets whose items are batches already: return the batch unchanged."""
    return batch


def init_worker(worker: int) -> None:
    """Set up a worker process: it ends with the main process, ignores signals, and OpenCV starts no threads."""
    cv2.setNumThreads(0)
    # The kernel kills this worker when the main process dies. Otherwise it might wait forever to send its batch.
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGKILL)
    # The thread that sends batches would only print an error, and the main process would wait for the batch forever.
    Queue._on_queue_feeder_error = staticmethod(_end_worker)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _end_worker(error: Exception, batch: object) -> None:
    """End this worker, which cannot send a batch. The main process notices, and ends the run."""
    print(f"error: the worker process {os.getpid()} cannot send its batch: {error!r}", file=sys.stderr, flush=True)
    os._exit(1)


@atexit.register
def _kill_workers() -> None:
    """Kill the remaining workers. They ignore SIGTERM, with which multiprocessing would end them."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise torch reports their end as a failure
        for worker in workers:
            worker.kill()
