"""Several training sets as one: the images of the first set, then those of the second, and so on."""

from collections.abc import Sequence
from itertools import chain

import numpy as np
from easydict import EasyDict

from data.dataset import DataError, FaceDataset, RecordDataset


class JoinedDataset(FaceDataset):
    """The images of `sets`, one set after the other. Positions and rows of teacher embeddings follow this order.

    shared_labels: whether a label is the same identity in all sets, which must then have the same number of
    identities. Otherwise, the labels of a set follow those of the sets before it. Raises DataError.
    """

    def __init__(self, sets: Sequence[FaceDataset], shared_labels: bool = False) -> None:
        self.sets = tuple(sets)
        self.source = ", ".join(part.source for part in sets)
        self.notes = tuple(
            f"training set {number}: {len(part)} images of {part.num_classes} identities from {part.source}"
            for number, part in enumerate(sets, start=1)
        ) + tuple(note for part in sets for note in part.notes)
        self._starts = np.cumsum([0, *map(len, sets)])  # int64 [sets + 1], the position of the first image of each set
        classes = [part.num_classes for part in sets]
        if shared_labels and len(set(classes)) > 1:
            counts = ", ".join(f"{part.source} has {part.num_classes}" for part in sets)
            raise DataError(
                f"shared_labels = True needs sets with the same number of identities, but {counts}; state the number "
                "of all identities in the file `property` of each folder, or set shared_labels=False"
            )
        self._first_labels = np.zeros(len(sets), dtype=np.int64)
        if not shared_labels:
            self._first_labels[1:] = np.cumsum(classes)[:-1]
        self.num_classes = int(self._first_labels[-1]) + classes[-1]

    def __len__(self) -> int:
        return int(self._starts[-1])

    def layout(self) -> list[bytes | memoryview]:
        return [self._starts.tobytes(), *chain.from_iterable(part.layout() for part in self.sets)]

    def name(self, position: int) -> str:
        number = self._sets_of(position)
        return self.sets[number].name(int(position - self._starts[number]))

    def read(self, position: int) -> tuple[bytes | memoryview, int]:
        number = self._sets_of(position)
        encoded, label = self.sets[number].read(int(position - self._starts[number]))
        return encoded, label + int(self._first_labels[number])

    def read_encoded(self, positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        numbers = self._sets_of(positions)
        labels, images = self._first_labels[numbers], [None] * len(positions)
        for number in np.unique(numbers):
            rows = np.flatnonzero(numbers == number)
            read, encoded = self.sets[number].read_encoded(positions[rows] - self._starts[number])
            labels[rows] += read
            for row, image in zip(rows, encoded, strict=True):
                images[row] = image
        return labels, images

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        numbers = self._sets_of(positions)
        labels = self._first_labels[numbers]
        for number in np.unique(numbers):
            rows = numbers == number
            labels[rows] += self.sets[number].read_labels(positions[rows] - self._starts[number])
        return labels

    def read_ahead(self, start: int, stop: int) -> None:
        for part, first in zip(self.sets, self._starts, strict=False):
            begin, end = max(start - int(first), 0), min(stop - int(first), len(part))
            if begin < end:
                part.read_ahead(begin, end)

    def _sets_of(self, positions: np.ndarray | int) -> np.ndarray:
        """The number of the set, from 0, of each position."""
        return np.searchsorted(self._starts, positions, side="right") - 1


def open_records(cfg: EasyDict) -> FaceDataset:
    """The record set in the folder that cfg.rec names, or the sets in its folders, joined."""
    sets = [RecordDataset(folder) for folder in cfg.rec]
    return sets[0] if len(sets) == 1 else JoinedDataset(sets, cfg.shared_labels)
