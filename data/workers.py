"""Worker processes that read and decode whole batches, and how they start, fail and end."""

import atexit
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.errors import InputError


def decoded_batches(
    images: Dataset, batches: Sequence[Sequence[int]], num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield each of `batches` with its images, uint8 [n, 112, 112, 3], decoded by `num_workers` processes.

    images: a dataset that is indexed with positions, images[positions] -> uint8 [n, 112, 112, 3]. An InputError of a
    worker is raised here as itself.
    """
    loader = DataLoader(
        _WithPositions(images),
        batch_size=None,
        sampler=batches,
        collate_fn=keep_batch,
        num_workers=min(num_workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
    )
    yield from raise_errors(loader)


class _WithPositions(Dataset):
    """(positions, images[positions]); an InputError comes back as a value, so that it can be raised as itself."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitem__(self, positions: Sequence[int]) -> tuple[Sequence[int], Tensor] | InputError:
        try:
            return positions, self.images[positions]
        except InputError as error:
            return error


def raise_errors(items: Iterable) -> Iterator:
    """Yield the items; raise the InputError that a worker sent in place of one."""
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item


def keep_batch(batch: object) -> object:
    """The `collate_fn` of datasets that make whole batches: nothing to collate."""
    return batch


def init_worker(worker: int) -> None:
    """Set up a worker process: no OpenCV threads of its own, and signals are left to the main process."""
    cv2.setNumThreads(0)
    sys.excepthook = _show_unless_main_process_ended
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _show_unless_main_process_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Show an error, unless it says that the main process ended while it was fetching a tensor from this worker."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


@atexit.register
def _kill_workers() -> None:
    """Kill the workers that are left. They ignore the SIGTERM by which multiprocessing would end them."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a failure
        for worker in workers:
            worker.kill()
