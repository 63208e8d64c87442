"""A training set of plain image files: one folder per identity."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from easydict import EasyDict

from data import WHERE_TO_GET
from data.dataset import DataError, FaceDataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")


class FolderDataset(FaceDataset):
    """Aligned images in one folder per identity. Label i belongs to folder i in the order of names.

    sample: use only this many images of each identity, the first by name; 0: use all. Raises DataError.
    """

    def __init__(self, folder: str | os.PathLike, sample: int = 0) -> None:
        self.source = str(folder)
        if not os.path.isdir(folder):
            raise DataError(f"{folder}: no such folder (expected one folder per identity); {WHERE_TO_GET}")
        identities = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
        paths, labels = [], []
        for label, identity in enumerate(identities):
            files = sorted(name for name in os.listdir(Path(folder, identity)) if name.lower().endswith(IMAGE_SUFFIXES))
            if not files:
                raise DataError(f"{folder}/{identity}: contains no images ({', '.join(IMAGE_SUFFIXES)}); remove it")
            files = files[: sample or None]
            paths += [os.path.join(identity, name) for name in files]
            labels += [label] * len(files)
        if not paths:
            raise DataError(f"{folder}: contains no folders with images ({', '.join(IMAGE_SUFFIXES)})")
        self.num_classes = len(identities)
        # One flat array: forked workers share its memory. Reading a list of strings would copy it, because Python
        # writes the reference count of each string.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def layout(self) -> bytes:
        sizes = np.array([self._path(position).stat().st_size for position in range(len(self))])
        return b"\n".join(self._paths.tolist()) + sizes.tobytes()

    def name(self, position: int) -> str:
        return str(self._path(position))

    def read(self, position: int) -> tuple[bytes, int]:
        return self._path(position).read_bytes(), int(self.labels[position])

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self.labels[positions]

    def encoded(self) -> Iterator[bytes]:
        """The bytes of the files, in order. Each file is decoded first, to check that it is an aligned image."""
        for position in range(len(self)):
            self.read_image(position)
            yield self.read(position)[0]

    def _path(self, position: int) -> Path:
        return Path(self.source, os.fsdecode(bytes(self._paths[position])))


def open_folder(cfg: EasyDict) -> FolderDataset:
    """The folder set in cfg.data_path, with at most cfg.sample images of each identity."""
    return FolderDataset(cfg.data_path, cfg.sample)
