"""Training batches of one rank: workers read the images; the device flips, normalises and augments them.

The order of the images depends only on the seed and the epoch, not on the number of workers or on the number of ranks
that share the global batch.
"""

from collections.abc import Iterator
from functools import partial
from itertools import starmap
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from data.augment import Augmentation
from data.batch_memory import SharedSlots, copy_ahead
from data.dataset import FaceDataset
from data.images import to_input
from data.shuffle import Shuffle
from data.teacher_cache import TeacherEmbeddings
from data.workers import read_items, worker_loader
from utils.distributed import local_share, rank, world_size
from utils.errors import InputError


class BatchPlan(NamedTuple):
    """Which images make up a batch, and how each is changed.

    positions: int64 [B]; flips: bool [B], which images are mirrored; draws: float32 [B, draws] in [0, 1), the random
    numbers for the augmentations; ahead: int64 [N, 2], ranges of images to read into memory for later batches.
    """

    positions: np.ndarray
    flips: np.ndarray
    draws: np.ndarray
    ahead: np.ndarray


class Batch(NamedTuple):
    """This rank's part of a batch, on the device: the input of a training step.

    images: float32 [B, 3, 112, 112] in [-1, 1], what the student sees; clean: the same images without augmentation;
    labels: int64 [B]; teacher: float16 [B, D], the teacher's embeddings of `clean` from a file, or None.
    """

    images: Tensor
    clean: Tensor
    labels: Tensor
    teacher: Tensor | None


class GlobalOrder(Sampler[BatchPlan]):
    """The batch plans of one rank.

    An epoch is a permutation of the set, cut into global batches of ranks * batch_size images. Rank r takes slice r of
    each. An incomplete last batch is dropped. draws: how many random numbers each image gets; flip: whether to mirror
    each image with probability 0.5; window and block: how the set is permuted, see Shuffle.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        draws: int = 0,
        flip: bool = True,
        window: int = 0,
        block: int = 4,
    ) -> None:
        self.num_images, self.batch_size, self.seed, self.draws, self.flip = num_images, batch_size, seed, draws, flip
        self.window, self.block = window, block
        self.epoch, self.first = 0, 0

    def start_at(self, epoch: int, first_batch: int) -> None:
        """Let the next iteration run through `epoch`, starting with its global batch `first_batch` (from 0)."""
        self.epoch, self.first = epoch, first_batch

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * world_size()) - self.first

    def __iter__(self) -> Iterator[BatchPlan]:
        shuffle = self._shuffle(self.epoch)
        # While a window is used, the next one is read: after the last one, the first one of the next epoch.
        blocks = [*shuffle.blocks, *(self._shuffle(self.epoch + 1).blocks[:1] if self.window else [])]
        for number in range(self.first, self.first + len(self)):
            start = (number * world_size() + rank()) * self.batch_size
            positions, flips = shuffle.images(start, start + self.batch_size)
            ahead = self._images_ahead(number, shuffle, blocks)
            yield BatchPlan(positions, flips & self.flip, self._draws_from(start), ahead)

    def _shuffle(self, epoch: int) -> Shuffle:
        return Shuffle(self.num_images, self.seed, epoch, self.window, self.block)

    def _images_ahead(self, number: int, shuffle: Shuffle, blocks: list[np.ndarray]) -> np.ndarray:
        """The images that this rank should have read into memory during global batch `number`: ranges, int64 [N, 2].

        They are its share, among the ranks of this machine, of a part of the next window. With the first batch of an
        iteration, all of the current window is added, and the part of the next one that earlier batches would have had.
        """
        if not self.window:
            return np.empty((0, 2), dtype=np.int64)
        global_batch = self.batch_size * world_size()
        start, stop = number * global_batch, (number + 1) * global_batch
        first, last = shuffle.window_at(start), shuffle.window_at(stop - 1)
        pieces = []
        if number == self.first:
            pieces.append(blocks[first])
            start = int(shuffle.starts[first])
        for window in range(first, last + 1):
            begin, end = shuffle.starts[window : window + 2]
            part = (np.array([max(start, begin), min(stop, end)]) - begin) * len(blocks[window + 1]) // (end - begin)
            pieces.append(blocks[window + 1][slice(*part)])
        return shuffle.ranges(np.concatenate(pieces)[local_share()])

    def _draws_from(self, start: int) -> np.ndarray:
        """The random numbers of a batch, float32 [B, draws]. start: how many images of the epoch come before it.

        They come from a separate stream, in which each image of the epoch has a fixed place.
        """
        stream = np.random.PCG64((self.seed, self.epoch, 1)).advance(start * self.draws)
        numbers = np.random.Generator(stream).random((self.batch_size, self.draws))
        largest = np.nextafter(np.float32(1), np.float32(0))  # rounding to float32 could give 1
        return np.minimum(numbers.astype(np.float32), largest)


class TrainingLoader:
    """An iterable over the batches of one epoch of `order`, read and decoded by `num_workers` processes.

    On a GPU, the next batch is copied while the current one is used. embeddings: the teacher's embeddings of
    `dataset`, if batches should contain them. augment: changes the student's images on the device.
    """

    def __init__(
        self,
        dataset: FaceDataset,
        order: GlobalOrder,
        num_workers: int,
        device: torch.device,
        embeddings: TeacherEmbeddings | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        self._dataset, self._order, self._embeddings = dataset, order, embeddings
        self._num_workers, self._device, self._augment = num_workers, device, augment
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._prepare_workers()

    def _prepare_workers(self) -> None:
        """Allocate the slots, and make the loader whose workers read into them."""
        self._slots = SharedSlots(self._order, self._order.batch_size, self._num_workers)
        reader = _BatchReader(self._dataset, self._embeddings, self._slots.memory)
        self._loader = worker_loader(reader, self._slots, self._num_workers, persistent_workers=self._num_workers > 0)

    def __iter__(self) -> Iterator[Batch]:
        tensors = self.read()
        if self._stream:
            tensors = copy_ahead(tensors, self._slots, self._stream)
        return starmap(partial(to_batch, device=self._device, augment=self._augment), tensors)

    def read(self) -> Iterator[list[Tensor | None]]:
        """Yield the arguments of `to_batch` as the workers read them, in host memory."""
        first = self._order.first

        def loader_after(done: int) -> DataLoader:
            """New workers have new slots: they may not share the memory of slots that were pinned before they start."""
            self._order.first = first + done
            self._prepare_workers()
            return self._loader

        return map(self._received, read_items(self._loader, loader_after))

    def _received(self, message: tuple) -> list[Tensor | None]:
        """What a worker sent, as tensors: images, labels, flips, draws and the teacher's embeddings."""
        images, *arrays = message
        images = self._slots.images(images) if isinstance(images, int) else torch.from_numpy(images)
        return [images, *(None if array is None else torch.from_numpy(array) for array in arrays)]


def to_batch(
    images: Tensor,
    labels: Tensor,
    flips: Tensor,
    draws: Tensor,
    teacher: Tensor | None,
    device: torch.device,
    augment: Augmentation | None = None,
) -> Batch:
    """Flip, normalise and augment a batch on the device.

    images: uint8 [B, 112, 112, 3] RGB; labels: int64 [B]; flips: bool [B]; draws: float32 [B, draws]; teacher: float16
    [B, D] or None.
    """
    clean = to_input(images, flips, device)
    student = augment(clean, draws.to(device)) if augment else clean
    return Batch(student, clean, labels.to(device), None if teacher is None else teacher.to(device))


class _BatchReader(Dataset):
    """Reads one batch per item, in the workers. An error is returned, so that the main process can raise it.

    All other values are returned as arrays. `images` is a slot number, or an array if no slot was free.
    """

    def __init__(self, dataset: FaceDataset, embeddings: TeacherEmbeddings | None, memory: Tensor) -> None:
        self.dataset, self.embeddings, self.memory = dataset, embeddings, memory

    def __getitem__(self, item: tuple[int | None, BatchPlan]) -> tuple | Exception:
        slot, (positions, flips, draws, ahead) = item
        images = np.empty(self.memory.shape[1:], np.uint8) if slot is None else self.memory[slot].numpy()
        try:
            for start, stop in ahead.tolist():
                self.dataset.read_ahead(start, stop)
            labels = self.dataset.read_batch(positions, images)
            teacher = None if self.embeddings is None else self.embeddings.rows(positions, flips).numpy()
        except (InputError, OSError) as error:
            return error
        return images if slot is None else slot, labels, flips, draws, teacher
