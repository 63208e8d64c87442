"""From a dataset to batches of one rank, in an order that follows from (seed, epoch, position) alone."""

import atexit
import multiprocessing
import signal
import sys
import weakref
from collections.abc import Iterable, Iterator, Sequence
from types import TracebackType
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.dataset import FaceDataset
from data.images import SIZE
from data.teacher_cache import EmbeddingFile
from utils.distributed import rank, world_size
from utils.errors import InputError


class BatchPlan(NamedTuple):
    """Which images make a batch, and what happens to each: positions [B], flips bool [B], draws float32 [B, draws]."""

    positions: np.ndarray
    flips: np.ndarray
    draws: np.ndarray


class TrainingBatch(NamedTuple):
    """images: uint8 [B, 112, 112, 3] RGB; labels: int64 [B]; flips: bool [B], which images to mirror;
    draws: float32 [B, draws] in [0, 1), for augmentations; teacher: float16 [B, D] of the images as flipped, or None.
    """

    images: Tensor
    labels: Tensor
    flips: Tensor
    draws: Tensor
    teacher: Tensor | None


class GlobalOrder:
    """Batches of places for this rank.

    An epoch is a permutation of the set, cut into global batches of ranks * batch_size; rank r takes the r-th slice of
    each. So a global batch depends on seed, epoch and its number, not on workers, nor on how many ranks share it; and
    so do the uniform numbers that come with each image, `draws` of them.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, draws: int = 0, flip: bool = True) -> None:
        self.num_images, self.batch_size, self.seed, self.draws, self.flip = num_images, batch_size, seed, draws, flip
        self.epoch, self.first = 0, 0

    def start_at(self, epoch: int, first_batch: int) -> None:
        """The next iteration runs through `epoch`, from its global batch `first_batch` on."""
        self.epoch, self.first = epoch, first_batch

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * world_size()) - self.first

    def __iter__(self) -> Iterator[BatchPlan]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.num_images)
        flips = generator.integers(0, 2, self.num_images, dtype=np.uint8).astype(bool) & self.flip
        for number in range(self.first, self.first + len(self)):
            start = (number * world_size() + rank()) * self.batch_size
            here = slice(start, start + self.batch_size)
            yield BatchPlan(order[here], flips[here], self._draws_from(start))

    def _draws_from(self, start: int) -> np.ndarray:
        """The uniform numbers of a batch that starts at this place of the epoch: a stream of its own, skipped to it."""
        stream = np.random.PCG64((self.seed, self.epoch, 1)).advance(start * self.draws)
        numbers = np.random.Generator(stream).random((self.batch_size, self.draws))
        return np.minimum(numbers.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))


class _Slots:
    """Memory of batches of images, shared with the workers, and the order of what they are to read into it.

    A slot is used again once nothing holds the tensor of its batch: fresh pages would take as long as the decoding.
    Where all are held, a batch gets memory of its own.
    """

    def __init__(self, order: GlobalOrder, num_workers: int) -> None:
        self.order = order
        count = 2 * num_workers + 3  # two on the way to each worker; one received, one in use, one about to be let go
        self.memory = torch.empty(count, order.batch_size, SIZE, SIZE, 3, dtype=torch.uint8)
        if num_workers:
            try:
                self.memory.share_memory_()
            except RuntimeError as error:
                raise InputError(
                    f"no shared memory for {self.memory.nbytes / 1e6:.0f} MB of batches: lower num_workers or "
                    f"batch_size, or give this container more (docker run --shm-size=8g) ({error})"
                ) from error
        self._free, self._sent = list(range(count)), set[int]()

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[tuple[int | None, BatchPlan]]:
        self._free.extend(self._sent)  # to workers, in an iteration that was given up
        self._sent.clear()
        for places in self.order:
            slot = self._free.pop() if self._free else None
            if slot is not None:
                self._sent.add(slot)
            yield slot, places

    def images(self, slot: int) -> Tensor:
        """The images of the batch that a worker has read into `slot`."""
        self._sent.remove(slot)
        images = self.memory[slot].numpy()
        weakref.finalize(images, self._free.append, slot).atexit = False
        return torch.from_numpy(images)  # it, and all views of it, hold the array


class _Source(Dataset):
    """Reads whole batches in the workers; an error of the input comes back as a value, to be raised as it was.

    What goes with the images are arrays: a tensor would cost a file descriptor each.
    """

    def __init__(self, dataset: FaceDataset, embeddings: EmbeddingFile | None, memory: Tensor) -> None:
        self.dataset, self.embeddings, self.memory = dataset, embeddings, memory

    def __getitem__(self, item: tuple[int | None, BatchPlan]) -> tuple | InputError:
        slot, (positions, flips, draws) = item
        images = torch.empty_like(self.memory[0]) if slot is None else self.memory[slot]
        try:
            labels = self.dataset.read_batch(positions, images.numpy())
        except InputError as error:
            return error
        teacher = None if self.embeddings is None else self.embeddings.rows(positions, flips).numpy()
        return images if slot is None else slot, labels, flips, draws, teacher


class Batches:
    """An iterable over the TrainingBatches of one epoch of `order`, decoded by `num_workers` processes.

    On a GPU they are there, the next one's copy under way while one is used; else in memory.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        order: GlobalOrder,
        num_workers: int,
        device: torch.device,
        embeddings: EmbeddingFile | None = None,
    ) -> None:
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._slots = _Slots(order, num_workers)
        self._loader = DataLoader(
            _Source(dataset, embeddings, self._slots.memory),
            batch_size=None,
            sampler=self._slots,
            collate_fn=keep_batch,
            num_workers=num_workers,
            prefetch_factor=2 if num_workers else None,
            persistent_workers=num_workers > 0,
            worker_init_fn=init_worker,
        )

    def __iter__(self) -> Iterator[TrainingBatch]:
        received = map(self._batch, raise_errors(self._loader))
        return _copied_ahead(received, self._stream) if self._stream else received

    def _batch(self, message: tuple) -> TrainingBatch:
        images, *rest = message
        images = self._slots.images(images) if isinstance(images, int) else images
        return TrainingBatch(images, *(None if part is None else torch.from_numpy(part) for part in rest))


class _Indexed(Dataset):
    """Whole batches of a dataset that is indexed with positions; an error of the input comes back as a value."""

    def __init__(self, images: Dataset) -> None:
        self.images = images

    def __getitem__(self, positions: Sequence[int]) -> tuple[Sequence[int], Tensor] | InputError:
        try:
            return positions, self.images[positions]
        except InputError as error:
            return error


def decoded_batches(
    images: Dataset, batches: Sequence[Sequence[int]], num_workers: int, pin_memory: bool = False
) -> Iterator[tuple[Sequence[int], Tensor]]:
    """Each of `batches` with its images, uint8 [n, 112, 112, 3], decoded by `num_workers` processes."""
    loader = DataLoader(
        _Indexed(images),
        batch_size=None,
        sampler=batches,
        collate_fn=keep_batch,
        num_workers=min(num_workers, len(batches)),
        pin_memory=pin_memory,
        worker_init_fn=init_worker,
    )
    yield from raise_errors(loader)


def _copied_ahead(batches: Iterator[TrainingBatch], stream: torch.cuda.Stream) -> Iterator[TrainingBatch]:
    """The batches on the GPU, through pinned memory by a stream of their own; while one is used the next is copied."""
    ahead = None
    for batch in batches:
        with torch.cuda.stream(stream):
            copies = (
                None if part is None else part.pin_memory().to(stream.device, non_blocking=True) for part in batch
            )
            copied = TrainingBatch(*copies), stream.record_event()
        if ahead is not None:
            yield _arrived(*ahead)
        ahead = copied
    if ahead is not None:
        yield _arrived(*ahead)


def _arrived(batch: TrainingBatch, copied: torch.cuda.Event) -> TrainingBatch:
    """The batch, for the current stream, which waits for its copy; its memory is not reused before that is done."""
    current = torch.cuda.current_stream()
    current.wait_event(copied)
    for part in batch:
        if part is not None:
            part.record_stream(current)
    return batch


@atexit.register
def _end_workers() -> None:
    """Kill what is left of the workers: they ignore the SIGTERM by which multiprocessing would end them, and wait."""
    if children := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a failure
        for child in children:
            child.kill()


def raise_errors(items: Iterable) -> Iterator:
    """The items; an InputError that a worker sent among them is raised."""
    for item in items:
        if isinstance(item, InputError):
            raise item
        yield item


def keep_batch(item: object) -> object:
    """The batch as the dataset made it."""
    return item


def init_worker(worker: int) -> None:
    """For a worker process: no OpenCV threads beside the other workers; signals are the training process's business."""
    cv2.setNumThreads(0)
    sys.excepthook = _unless_left_alone
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def _unless_left_alone(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Show an error, unless it says that the training process ended while it was fetching a tensor from here."""
    if not issubclass(kind, EOFError | ConnectionError):
        sys.__excepthook__(kind, error, trace)
