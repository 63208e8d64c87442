"""A training set of plain image files: one folder per identity."""

import os
from collections import Counter
from pathlib import Path

import numpy as np
from easydict import EasyDict

from data import WHERE_TO_GET
from data.dataset import DataError, FaceDataset

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp")
# What file servers, Windows and archives add to folders, in lower case. Names that begin with a dot are hidden anyway.
TOOL_NAMES = {"@eadir", "#recycle", "__macosx", "$recycle.bin", "system volume information", "lost+found", "thumbs.db",
              "desktop.ini"}  # fmt: skip


class FolderDataset(FaceDataset):
    """Aligned images in one folder per identity. Label i belongs to folder i in the order of names.

    Hidden files and folders, those of tools, and files that are not images are left out; `notes` has their numbers.
    sample: use only this many images of each identity, the first by name; 0: use all. Raises DataError, also for broken
    links and for folders inside the folder of an identity.
    """

    def __init__(self, folder: str | os.PathLike, sample: int = 0) -> None:
        self.source = str(folder)
        if not os.path.isdir(folder):
            raise DataError(f"{folder}: no such folder (expected one folder per identity); {WHERE_TO_GET}")
        left_out: Counter[str] = Counter()
        identities = sorted(entry.name for entry in _visible(folder, left_out) if _is_identity(entry, left_out))
        paths, labels = [], []
        for label, identity in enumerate(identities):
            entries = _visible(Path(folder, identity), left_out)
            files = sorted(entry.name for entry in entries if _is_image(entry, left_out))
            if not files:
                raise DataError(f"{folder}/{identity}: contains no images ({', '.join(IMAGE_SUFFIXES)}); remove it")
            files = files[: sample or None]
            paths += [os.path.join(identity, name) for name in files]
            labels += [label] * len(files)
        if not paths:
            raise DataError(f"{folder}: contains no folders with images ({', '.join(IMAGE_SUFFIXES)})")
        self.num_classes = len(identities)
        if left_out:
            counts = ", ".join(f"{what} ({count})" for what, count in sorted(left_out.items()))
            self.notes = (f"left out of {folder}: {counts}",)
        # One flat array: forked workers share its memory. Reading a list of strings would copy it, because Python
        # writes the reference count of each string.
        self._paths = np.array([os.fsencode(path) for path in paths])
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        return len(self._paths)

    def layout(self) -> list[bytes | memoryview]:
        sizes = np.array([self._path(position).stat().st_size for position in range(len(self))])
        return [b"\n".join(self._paths.tolist()), memoryview(sizes)]

    def name(self, position: int) -> str:
        return str(self._path(position))

    def read(self, position: int) -> tuple[bytes, int]:
        path = self._path(position)
        try:
            return path.read_bytes(), int(self.labels[position])
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}), but was there at the start; restore it, or start again"
            ) from error

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self.labels[positions]

    def _path(self, position: int) -> Path:
        return Path(self.source, os.fsdecode(bytes(self._paths[position])))


def find_images(folder: str | os.PathLike) -> list[str]:
    """The paths, relative to `folder` and sorted, of all images in it and in the folders inside it.

    Hidden files and folders, those of tools, links to folders, pipes, and files that are not images are left out.
    Raises DataError if there is no image, or for a broken link.
    """
    left_out: Counter[str] = Counter()
    folders, found = [Path(folder)], []
    while folders:
        for entry in _visible(folders.pop(), left_out):
            if entry.is_dir(follow_symlinks=False):
                folders.append(Path(entry.path))
            elif entry.is_file() and entry.name.lower().endswith(IMAGE_SUFFIXES):
                found.append(os.path.relpath(entry.path, folder))
    if not found:
        raise DataError(f"{folder}: contains no images ({', '.join(IMAGE_SUFFIXES)})")
    return sorted(found)


def _visible(folder: str | os.PathLike, left_out: Counter[str]) -> list[os.DirEntry]:
    """The entries of a folder that are not hidden and do not belong to tools; the others are counted.

    Raises DataError for a broken link.
    """
    entries = []
    for entry in os.scandir(folder):
        if entry.name.startswith(".") or entry.name.lower() in TOOL_NAMES:
            left_out["hidden entries and entries created by tools"] += 1
        elif entry.is_symlink() and not os.path.exists(entry.path):
            raise DataError(
                f"{entry.path}: broken link to {os.readlink(entry.path)}; restore its target, or remove the link"
            )
        else:
            entries.append(entry)
    return entries


def _is_identity(entry: os.DirEntry, left_out: Counter[str]) -> bool:
    if not entry.is_dir():
        left_out["files outside the folders of identities"] += 1
    return entry.is_dir()


def _is_image(entry: os.DirEntry, left_out: Counter[str]) -> bool:
    if entry.is_dir():
        raise DataError(
            f"{entry.path}: a folder inside the folder of an identity; move its images up, or remove it. Each identity "
            "needs its own folder directly in the folder of the set"
        )
    is_image = entry.name.lower().endswith(IMAGE_SUFFIXES)
    if is_image and not entry.is_file():
        raise DataError(f"{entry.path}: neither a file nor a folder; remove it")
    if not is_image:
        left_out["files that are not images"] += 1
    return is_image


def open_folder(cfg: EasyDict) -> FolderDataset:
    """The folder set in cfg.data_path, with at most cfg.sample images of each identity."""
    return FolderDataset(cfg.data_path, cfg.sample)
