"""From a dataset to batches of one rank, in an order that follows from (seed, epoch, position) alone."""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from typing import NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils.dataset import Batch, FaceDataset
from utils.distributed import rank, world_size
from utils.embedding_file import EmbeddingFile
from utils.errors import InputError


class Places(NamedTuple):
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

    def __init__(self, num_images: int, batch_size: int, seed: int, draws: int = 0) -> None:
        self.num_images, self.batch_size, self.seed, self.draws = num_images, batch_size, seed, draws
        self.epoch, self.first = 0, 0

    def start_at(self, epoch: int, first_batch: int) -> None:
        """The next iteration runs through `epoch`, from its global batch `first_batch` on."""
        self.epoch, self.first = epoch, first_batch

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * world_size()) - self.first

    def __iter__(self) -> Iterator[Places]:
        generator = np.random.default_rng((self.seed, self.epoch))
        order = generator.permutation(self.num_images)
        flips = generator.integers(0, 2, self.num_images, dtype=np.uint8).astype(bool)
        for number in range(self.first, self.first + len(self)):
            start = (number * world_size() + rank()) * self.batch_size
            here = slice(start, start + self.batch_size)
            yield Places(order[here], flips[here], self._draws_from(start))

    def _draws_from(self, start: int) -> np.ndarray:
        """The uniform numbers of a batch that starts at this place of the epoch: a stream of its own, skipped to it."""
        stream = np.random.PCG64((self.seed, self.epoch, 1)).advance(start * self.draws)
        numbers = np.random.Generator(stream).random((self.batch_size, self.draws))
        return np.minimum(numbers.astype(np.float32), np.nextafter(np.float32(1), np.float32(0)))


class _Source(Dataset):
    """Reads whole batches in the workers; an error of the input comes back as a value, to be raised as it was."""

    def __init__(self, dataset: FaceDataset, embeddings: EmbeddingFile | None) -> None:
        self.dataset, self.embeddings = dataset, embeddings

    def __getitem__(self, places: Places) -> TrainingBatch | InputError:
        try:
            batch: Batch = self.dataset[places.positions]
        except InputError as error:
            return error
        teacher = None if self.embeddings is None else self.embeddings.rows(places.positions, places.flips)
        return TrainingBatch(*batch, torch.from_numpy(places.flips), torch.from_numpy(places.draws), teacher)


def batches(
    dataset: FaceDataset,
    order: GlobalOrder,
    num_workers: int,
    device: torch.device,
    embeddings: EmbeddingFile | None = None,
) -> "Loader":
    """An iterable over the TrainingBatches of one epoch of `order`, decoded by `num_workers` processes."""
    return Loader(
        DataLoader(
            _Source(dataset, embeddings),
            batch_size=None,
            sampler=order,
            collate_fn=unchanged,
            num_workers=num_workers,
            pin_memory=device.type == "cuda",
            persistent_workers=num_workers > 0,
            worker_init_fn=start_worker,
        )
    )


@atexit.register
def _end_workers() -> None:
    """Kill what is left of the workers: they ignore the SIGTERM by which multiprocessing would end them, and wait."""
    if children := multiprocessing.active_children():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch would report their end as a failure
        for child in children:
            child.kill()


class Loader:
    """Iterates a DataLoader and raises the input errors that come through it."""

    def __init__(self, loader: DataLoader) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator:
        for batch in self._loader:
            if isinstance(batch, InputError):
                raise batch
            yield batch


def unchanged(item: object) -> object:
    """The batch as the dataset made it."""
    return item


def start_worker(worker: int) -> None:
    """For a worker process: no OpenCV threads beside the other workers; signals are the training process's business."""
    cv2.setNumThreads(0)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
