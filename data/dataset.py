"""Training sets. A set is indexed with a batch of positions, and knows the label of each position.

A record set has one of two layouts. In InsightFace's, record 0 states which keys are images; in CVLFace's, every key is
an image. A folder set (data/folder_set.py) has one folder per identity.
"""

import os
from collections.abc import Iterable
from functools import cached_property
from itertools import chain
from pathlib import Path
from pkgutil import resolve_name

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor
from tqdm import tqdm

from config import names
from data.images import SIZE, decode_aligned, decode_into
from data.recordio import Header, IndexedRecordReader
from utils.errors import InputError
from utils.files import checksum
from utils.text import read_text

MAX_CLASSES = 2**24  # labels are stored as float32, which represents all integers up to this one exactly


class DataError(InputError):
    """A training set that cannot be used, or that contradicts the config."""


class FaceDataset(torch.utils.data.Dataset):
    """The base class of training sets: `source` (its path), `num_classes`, len(), and dataset[positions] -> images.

    notes: lines for the log, about what was left out and how the set was read.
    """

    source: str
    num_classes: int
    notes: tuple[str, ...] = ()

    def read(self, position: int) -> tuple[bytes | memoryview, int]:
        """The encoded image at `position`, and its label."""
        raise NotImplementedError

    def name(self, position: int) -> str:
        """What error messages call the image at `position`."""
        raise NotImplementedError

    def layout(self) -> Iterable[bytes | memoryview]:
        """What identifies the images of the set and their order. The images themselves are not read."""
        raise NotImplementedError

    def read_encoded(self, positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """The labels of the images at `positions` [N], int64 [N], and the encoded images, uint8 [bytes] each."""
        images = [self.read(int(position)) for position in positions]
        labels = np.array([label for _, label in images], dtype=np.int64)
        return labels, [np.frombuffer(encoded, dtype=np.uint8) for encoded, _ in images]

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        """The labels of the images at `positions` [N], int64 [N]. Nothing is decoded."""
        return self.read_encoded(positions)[0]

    def read_ahead(self, start: int, stop: int) -> None:
        """Ask the operating system to read the images at the positions start .. stop - 1 into its page cache.

        Returns before they are read. Does nothing if they are not stored next to each other.
        """

    def read_image(self, position: int) -> tuple[np.ndarray, int]:
        """The image at `position`, uint8 [112, 112, 3] RGB, and its label. Raises InputError."""
        encoded, label = self.read(position)
        return decode_aligned(encoded, self.name(position)), label

    def read_batch(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Decode the images at `positions` [N] into `images`, uint8 [N, 112, 112, 3]. Returns the labels, int64 [N]."""
        labels, encoded = self.read_encoded(positions)
        decode_into(images, encoded, lambda row: self.name(int(positions[row])))
        return labels

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, in hexadecimal digits, of the layout and of up to 1,024 evenly spaced images. Fast for any set."""
        positions = np.linspace(0, len(self) - 1, min(len(self), 1024)).astype(int)
        return checksum(chain(self.layout(), (self.read(int(position))[0] for position in positions)))

    def __getitem__(self, positions: np.ndarray) -> Tensor:
        """The images at `positions` [N], uint8 [N, 112, 112, 3] RGB."""
        images = np.empty((len(positions), SIZE, SIZE, 3), dtype=np.uint8)
        self.read_batch(np.asarray(positions), images)
        return torch.from_numpy(images)


class RecordDataset(FaceDataset):
    """The images of train.rec in a folder, in the order of their keys. Raises DataError or RecordError."""

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = Path(folder)
        self.source = str(folder / "train.rec")
        self.reader = IndexedRecordReader(self.source, folder / "train.idx")
        keys = self.reader.keys
        header, encoded = self.reader.read(int(keys[0]))
        stated = read_property(folder / "property")
        if states_layout(header, encoded):
            keys, self.num_classes = self._insightface_layout(keys, header.label)
            if stated is not None and stated != self.num_classes:
                raise DataError(
                    f"{folder / 'property'}: says {stated} identities, but record 0 says {self.num_classes}"
                )
        else:
            self.num_classes = stated if stated is not None else self._count_classes(keys)
            if header.flag > 1:
                self.notes = (f"the records have {header.flag} labels each; the first one is the identity",)
        if len(keys) == 0:
            raise DataError(f"{self.source}: contains no images")
        self.keys = keys  # of the images, int64 [N], by position

    def __len__(self) -> int:
        return len(self.keys)

    def layout(self) -> list[bytes | memoryview]:
        return [memoryview(self.keys), *self.reader.layout()]

    def name(self, position: int) -> str:
        return f"{self.source}: record {self.keys[position]}"

    def read(self, position: int) -> tuple[memoryview, int]:
        header, encoded = self.reader.read(int(self.keys[position]))
        label = float(header.label if header.flag == 0 else header.label[0])
        if not (label.is_integer() and 0 <= label < self.num_classes):
            raise DataError(f"{self.name(position)} has label {label:g}, outside 0..{self.num_classes - 1}")
        return encoded, int(label)

    def read_encoded(self, positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """As in the base class. The encoded images are views of the file, whose bytes are not read yet."""
        labels, encoded = self.reader.read_batch(self.keys[positions])
        wrong = ~((labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels)))
        for position in positions[wrong]:
            self.read(int(position))  # raises the error that names the record
        return labels.astype(np.int64), encoded

    def read_ahead(self, start: int, stop: int) -> None:
        self.reader.read_ahead(int(self.keys[start]), int(self.keys[stop - 1]))

    def _insightface_layout(self, keys: np.ndarray, label: np.ndarray) -> tuple[np.ndarray, int]:
        """The keys of the images, 1..N, and the number of identities.

        label: the labels of record 0, which are N + 1 and N + 1 + the number of identities.
        """
        if not np.isfinite(label).all():
            raise DataError(f"{self.source}: record 0 says {label}, which is not a range of keys; fetch it again")
        end, last = (int(value) for value in label)
        first, last_image = np.searchsorted(keys, [1, end])
        images = keys[first:last_image]
        if len(images) != end - 1:
            raise DataError(
                f"{self.reader.idx_path}: lists {len(images)} images, but record 0 says {end - 1}; fetch it again"
            )
        if last - end < 1:
            raise DataError(f"{self.source}: record 0 says {last - end} identities; fetch it again")
        return images, last - end

    def _count_classes(self, keys: np.ndarray) -> int:
        """The largest label plus 1, for a set that does not state its number of identities."""
        headers = (self.reader.read(int(key))[0] for key in tqdm(keys, "counting identities (no property file)"))
        largest = float(np.max([header.label if header.flag == 0 else header.label[0] for header in headers]))
        if not 0 <= largest < MAX_CLASSES:
            raise DataError(f"{self.source}: the largest label is {largest:g}; identities are numbered from 0")
        return 1 + int(largest)


def states_layout(header: Header, encoded: bytes | memoryview) -> bool:
    """Whether the first record states which keys are images, as in InsightFace's layout.

    It has two labels and no image. The images of `im2rec --pack-label` may have two labels too.
    """
    return header.flag == 2 and len(encoded) == 0


def read_property(path: Path) -> int | None:
    """The number of identities in a `property` file ("num_ids,height,width"); None if there is no such file.

    Raises DataError.
    """
    if not path.is_file():
        return None
    try:
        num_ids, height, width = (int(number) for number in read_text(path).strip().split(b","))
    except ValueError:
        raise DataError(
            f"{path}: must contain num_ids,height,width; fix it, or remove it to have the identities counted"
        ) from None
    if (height, width) != (SIZE, SIZE):
        raise DataError(f"{path}: images of {width}x{height} pixels; the networks take {SIZE}x{SIZE}")
    return num_ids


def build_dataset(cfg: EasyDict) -> FaceDataset:
    """The training set that the config names. Sets cfg.num_classes and cfg.num_image.

    Raises DataError if these were already set to other numbers.
    """
    dataset = resolve_name(names.FILE_FORMATS[cfg.db_file_format])(cfg)
    for key, actual in (("num_classes", dataset.num_classes), ("num_image", len(dataset))):
        if cfg[key] is not None and cfg[key] != actual:
            raise DataError(f"{key} = {cfg[key]}, but {dataset.source} has {actual}; fix {key} or set {key}=None")
        cfg[key] = actual
    return dataset
