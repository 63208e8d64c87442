"""Worker processes that read and decode batches: how they start, fail and end."""

import atexit
import multiprocessing
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType

import cv2
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.distributed import watch_workers
from utils.errors import InputError


def decoded_batches(
    images: Dataset, batches: Sequence[Sequence[int]], num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Yield each of `batches` with its images, uint8 [n, 112, 112, 3], decoded by `num_workers` processes.

    images: a dataset with images[positions] -> uint8 [n, 112, 112, 3]. batches: lists of positions. An InputError in a
    worker is raised here unchanged.
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
    """Returns (positions, images[positions]), or an InputError, so that the main process can raise it."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitem__(self, positions: Sequence[int]) -> tuple[Sequence[int], Tensor] | InputError:
        try:
            return positions, self.images[positions]
        except InputError as error:
            return error


def raise_errors(items: Iterable) -> Iterator:
    """Yield the items. If a worker sent an InputError instead of an item, raise it."""
    iterator = iter(items)  # starts the workers
    watch_workers(multiprocessing.active_children())
    for item in iterator:
        if isinstance(item, InputError):
            raise item
        yield item


def keep_batch(batch: object) -> object:
    """The `collate_fn` for datasets whose items are batches already: return the batch unchanged."""
    return batch


def init_worker(worker: int) -> None:
    """Set up a worker process: OpenCV starts no threads, and only the main process reacts to signals."""
    cv2.setNumThreads(0)
    sys.excepthook = _show_unless_main_process_ended
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _show_unless_main_process_ended(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print an error, unless it only shows that the main process ended while it fetched a tensor from this worker."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)


@atexit.register
def _kill_workers() -> None:
    """Kill the remaining workers. They ignore SIGTERM, with which multiprocessing would end them."""
    if workers := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # otherwise torch reports their end as a failure
        for worker in workers:
            worker.kill()
