"""Training sets: a dataset is indexed with a batch of positions and gives uint8 images and labels.

Record sets come in two layouts (InsightFace's, whose record 0 says which keys are images, and CVLFace's, where every
key is one); a folder set has a folder an identity.
"""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor
from tqdm import tqdm

from config import names
from data.images import SIZE, decode_aligned, decode_into
from data.recordio import IndexedRecordReader
from utils.errors import InputError

MOST_CLASSES = 2**24  # up to here every whole number is a float32, which labels are
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class DataError(InputError):
    """A training set that cannot be used, or that is not what the config says."""


class Batch(NamedTuple):
    """images: uint8 [B, 112, 112, 3] RGB; labels: int64 [B]."""

    images: Tensor
    labels: Tensor


class Encoded(NamedTuple):
    """An image as its set holds it: its bytes, its label, and how errors call it."""

    data: bytes | memoryview
    label: int
    name: str


class FaceDataset(torch.utils.data.Dataset):
    """What every training set has: `source` (its path), `num_classes`, len(), and dataset[positions] -> Batch."""

    source: str
    num_classes: int

    def read(self, position: int) -> Encoded:
        """The image at `position`, not yet decoded."""
        raise NotImplementedError

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        """The labels of the images at `positions` [N], int64 [N]; nothing is decoded."""
        return np.array([self.read(int(position)).label for position in positions], dtype=np.int64)

    def layout(self) -> bytes:
        """What says which images the set holds and in which order, without reading them."""
        raise NotImplementedError

    def read_image(self, position: int) -> tuple[np.ndarray, int]:
        """uint8 [112, 112, 3] RGB and the label of the image at `position`."""
        encoded = self.read(position)
        return decode_aligned(encoded.data, encoded.name), encoded.label

    def read_batch(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        """Decode the images at `positions` [N] into `images`, uint8 [N, 112, 112, 3]; their labels, int64 [N]."""
        labels = np.empty(len(positions), dtype=np.int64)
        for row, position in enumerate(positions):
            images[row], labels[row] = self.read_image(int(position))
        return labels

    def fingerprint(self) -> str:
        """SHA-256 over the layout and the bytes of up to 1,024 images spread evenly: quick at any size."""
        digest = hashlib.sha256(self.layout())
        for position in np.linspace(0, len(self) - 1, min(len(self), 1024)).astype(int):
            digest.update(self.read(int(position)).data)
        return digest.hexdigest()

    def __getitem__(self, positions: np.ndarray) -> Batch:
        images = np.empty((len(positions), SIZE, SIZE, 3), dtype=np.uint8)
        labels = self.read_batch(positions, images)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels))


class RecordDataset(FaceDataset):
    """The images of train.rec in a folder, in the order of their keys."""

    def __init__(self, folder: str | os.PathLike) -> None:
        folder = Path(folder)
        self.source = str(folder / "train.rec")
        self.reader = IndexedRecordReader(self.source, folder / "train.idx")
        keys = self.reader.keys
        header, _ = self.reader.read(int(keys[0]))
        stated = read_property(folder / "property")
        if header.flag == 2:  # InsightFace: label [N + 1, N + 1 + num_ids], images under 1 .. N
            if not np.isfinite(header.label).all():
                raise DataError(f"{self.source}: record 0 says {header.label}, no range of keys; fetch it again")
            end, last = (int(value) for value in header.label)
            keys = keys[(keys >= 1) & (keys < end)]
            if len(keys) != end - 1:
                raise DataError(
                    f"{folder / 'train.idx'}: lists {len(keys)} images, record 0 says {end - 1}; fetch it again"
                )
            self.num_classes = last - end
            if self.num_classes < 1:
                raise DataError(f"{self.source}: record 0 says {self.num_classes} identities; fetch it again")
            if stated is not None and stated != self.num_classes:
                raise DataError(f"{folder / 'property'}: says {stated} identities, record 0 says {self.num_classes}")
        else:
            self.num_classes = stated if stated is not None else self._count_classes(keys)
        if len(keys) == 0:
            raise DataError(f"{self.source}: holds no image record")
        self._keys = torch.from_numpy(keys.copy()).share_memory_()

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> np.ndarray:
        """The keys of the images, int64, by position."""
        return self._keys.numpy()

    def layout(self) -> bytes:
        return self.keys.tobytes() + self.reader.layout()

    def read(self, position: int) -> Encoded:
        key = int(self._keys[position])
        header, data = self.reader.read(key)
        label = float(header.label if header.flag == 0 else header.label[0])
        if not (label.is_integer() and 0 <= label < self.num_classes):
            raise DataError(f"{self.source}: record {key} has label {label:g}, outside 0..{self.num_classes - 1}")
        return Encoded(data, int(label), self._name(key))

    def read_batch(self, positions: np.ndarray, images: np.ndarray) -> np.ndarray:
        labels, encoded = self._read_encoded(positions)
        keys = self.keys[positions]
        decode_into(images, encoded, lambda row: self._name(keys[row]))
        return labels

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self._read_encoded(positions)[0]

    def _read_encoded(self, positions: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """Labels, int64 [N], and the images' bytes, which are not touched."""
        labels, encoded = self.reader.read_batch(self.keys[positions])
        wrong = ~((labels >= 0) & (labels < self.num_classes) & (labels == np.floor(labels)))
        for position in positions[wrong]:
            self.read(int(position))  # says what is wrong
        return labels.astype(np.int64), encoded

    def _name(self, key: int) -> str:
        return f"{self.source}: record {key}"

    def _count_classes(self, keys: np.ndarray) -> int:
        """One more than the largest label, for a set that states its number of identities nowhere."""
        headers = (self.reader.read(int(key))[0] for key in tqdm(keys, "counting identities (no property file)"))
        largest = float(np.max([header.label if header.flag == 0 else header.label[0] for header in headers]))
        if not 0 <= largest < MOST_CLASSES:
            raise DataError(f"{self.source}: the largest label is {largest:g}; identities are numbered from 0")
        return 1 + int(largest)


class FolderDataset(FaceDataset):
    """A folder of identity folders of aligned images; labels follow the folders' sorted names."""

    def __init__(self, folder: str | os.PathLike, sample: int = 0) -> None:
        self.source = str(folder)
        if not os.path.isdir(folder):
            raise DataError(f"{folder}: no such folder; data_path is a folder with one folder an identity")
        identities = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        paths, labels = [], []
        for label, identity in enumerate(identities):
            names = sorted(name for name in os.listdir(Path(folder, identity)) if name.lower().endswith(IMAGE_SUFFIXES))
            if not names:
                raise DataError(f"{Path(folder, identity)}: holds no image ({', '.join(IMAGE_SUFFIXES)}); remove it")
            names = names[: sample or None]
            paths += [os.path.join(identity, name) for name in names]
            labels += [label] * len(names)
        if not paths:
            raise DataError(f"{folder}: no images ({', '.join(IMAGE_SUFFIXES)}) in folders of it")
        self.num_classes = len(identities)
        # Flat byte arrays: forked workers read them without touching, and so without copying, their pages.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def layout(self) -> bytes:
        sizes = np.array([self._path(position).stat().st_size for position in range(len(self))])
        return b"\n".join(self._paths.tolist()) + sizes.tobytes()

    def read(self, position: int) -> Encoded:
        path = self._path(position)
        return Encoded(path.read_bytes(), int(self.labels[position]), str(path))

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self.labels[positions]

    def encoded(self) -> Iterator[bytes]:
        """The files' bytes, in order, each shown to be an aligned image."""
        for position in range(len(self)):
            self.read_image(position)
            yield bytes(self.read(position).data)

    def _path(self, position: int) -> Path:
        return Path(self.source, os.fsdecode(bytes(self._paths[position])))


def read_property(path: Path) -> int | None:
    """The number of identities in a `property` file ("num_ids,height,width"), None where there is no file.

    Raises DataError.
    """
    if not path.is_file():
        return None
    try:
        num_ids, height, width = (int(number) for number in path.read_text().strip().split(","))
    except ValueError:
        raise DataError(
            f"{path}: must hold num_ids,height,width; fix it, or remove it and labels are counted"
        ) from None
    if (height, width) != (SIZE, SIZE):
        raise DataError(f"{path}: images of {width}x{height} pixels; the networks take {SIZE}x{SIZE}")
    return num_ids


def open_records(cfg: EasyDict) -> RecordDataset:
    """The record set in the folder cfg.rec."""
    return RecordDataset(cfg.rec)


def open_folder(cfg: EasyDict) -> FolderDataset:
    """The identity folders in cfg.data_path, at most cfg.sample images of each."""
    return FolderDataset(cfg.data_path, cfg.sample)


def build_dataset(cfg: EasyDict) -> FaceDataset:
    """The training set that the config names; cfg.num_classes and cfg.num_image are held against it, or set from it."""
    dataset = resolve_name(names.FILE_FORMATS[cfg.db_file_format])(cfg)
    for key, found in (("num_classes", dataset.num_classes), ("num_image", len(dataset))):
        if cfg[key] is not None and cfg[key] != found:
            raise DataError(f"{key} = {cfg[key]}, but {dataset.source} has {found}; fix {key} or set {key}=None")
        cfg[key] = found
    return dataset
