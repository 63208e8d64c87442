"""Sets in CVLFace's Arrow layout: a folder of images, each with an index.

A template set has a file metadata.pt next to the images; a verification set has a flag for each image.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.images import decode_aligned, decode_rgb, fit
from data.template_metadata import ArrowSetError, check_metadata, read_metadata
from utils.errors import InputError
from utils.files import atomic_write

_NO_KEYS: Mapping[str, str] = {}


class _ArrowImages(torch.utils.data.Dataset):
    """N encoded images in the order of their index. `images[positions]` decodes n of them: uint8 [n, 112, 112, 3] RGB.

    columns: the names of the columns to open besides `image` and `index`.
    """

    _decode = staticmethod(decode_aligned)

    def __init__(self, path: str | os.PathLike, *columns: str) -> None:
        self.path = str(path)
        self._rows = _open(self.path, ["image", "index", *columns])
        self._order = _order(self.path, self._column("index"))

    def require_images(self) -> None:
        """Raise ArrowSetError if the bytes of some images are missing. No image is read."""
        images = self._rows.select_columns(["image"]).with_format("arrow")[:]["image"]
        parts = [np.asarray(chunk.is_null()) | chunk.field("bytes").is_null() for chunk in images.chunks]
        is_missing = np.concatenate([np.zeros(0, dtype=bool), *parts])[self._order]
        if is_missing.any():
            raise ArrowSetError(
                f"{self.path}: {is_missing.sum()} of the {len(self)} images are missing, the first is the image with "
                f"index {is_missing.argmax()}; save the set again, with the bytes of every image in it"
            )

    def _column(self, name: str) -> np.ndarray:
        return self._rows.select_columns([name]).with_format("numpy")[:][name]

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        entries = self._rows[self._order[list(positions)].tolist()]["image"]
        images = [
            self._decode(self._bytes(position, entry), self._name(position))
            for position, entry in zip(positions, entries, strict=True)
        ]
        return torch.from_numpy(np.stack(images))

    def read(self, position: int) -> bytes:
        """The encoded image with index `position`. Raises ArrowSetError if it is missing."""
        return self._bytes(position, self._rows[int(self._order[position])]["image"])

    def _bytes(self, position: int, entry: dict[str, Any] | None) -> bytes:
        if entry is None or entry["bytes"] is None:
            raise ArrowSetError(
                f"{self._name(position)} is missing; save the set again, with the bytes of every image in it"
            )
        return entry["bytes"]

    def _name(self, position: int) -> str:
        return f"{self.path}: image with index {position}"


class TemplateSet(_ArrowImages):
    """The images of a template set, and its metadata. `images[positions]` decodes n images: uint8 [n, 112, 112, 3] RGB.

    metadata: the dict in metadata.pt. per_image: the keys that must have one entry per image; entry i belongs to the
    image with index i. others: the keys that may have any number of entries. optional: keys like those of per_image,
    which may be missing. All map a key to the type of its entries: INTEGERS, NUMBERS or TEXTS. Raises ArrowSetError.
    """

    def __init__(
        self,
        path: str | os.PathLike,
        per_image: Mapping[str, str] = _NO_KEYS,
        others: Mapping[str, str] = _NO_KEYS,
        optional: Mapping[str, str] = _NO_KEYS,
    ) -> None:
        super().__init__(path)
        self.require_images()
        file = Path(self.path, "metadata.pt")
        self.metadata = read_metadata(file)
        present = {name: entry_type for name, entry_type in optional.items() if name in self.metadata}
        check_metadata(file, self.metadata, len(self), {**per_image, **present}, others)


class ArrowVerificationSet(_ArrowImages):
    """2P encoded images and P flags. `images[positions]` decodes n images: uint8 [n, 112, 112, 3] RGB.

    The images with index 2i and 2i + 1 are pair i. is_same: bool [P], whether a pair shows one person. The column
    `is_same` has this flag at both images of a pair. Images of another size are resized and cropped as in .bin sets.
    Raises ArrowSetError.
    """

    identities = None  # the layout has no place for them

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path, "is_same")
        self.is_same = _flags_of_pairs(self.path, self._column("is_same")[self._order])

    def _decode(self, encoded: bytes, name: str) -> np.ndarray:
        return fit(decode_rgb(encoded, name))


def write_template_set(
    folder: str | os.PathLike, encoded: Sequence[bytes], metadata: Mapping[str, Any], description: str
) -> None:
    """Write a template set that `TemplateSet` reads to a folder, which is created if it does not exist.

    encoded: N encoded images; image i gets the index i. metadata: arrays and lists for metadata.pt. description: a text
    for dataset_info.json. Raises ArrowSetError if the package `datasets` is missing.
    """
    datasets = _import_datasets(folder)
    features = datasets.Features(image=datasets.Image(), index=datasets.Value("int64"))
    rows = {"image": [{"bytes": image, "path": None} for image in encoded], "index": range(len(encoded))}
    info = datasets.DatasetInfo(description=description, features=features)
    datasets.Dataset.from_dict(rows, features=features, info=info).save_to_disk(os.fspath(folder))
    with atomic_write(Path(folder, "metadata.pt")) as file:
        torch.save(dict(metadata), file)


def _open(path: str, wanted: list[str]) -> Any:
    """The columns `wanted` of the set as a datasets.Dataset: memory-mapped, images still encoded."""
    datasets = _import_datasets(path)
    try:
        _require_files_inside(path)
        rows = datasets.load_from_disk(path)
        columns = rows.column_names
        if isinstance(columns, list) and set(wanted) <= set(columns):
            # Only bytes and numbers are accepted: if a row contained a path, `datasets` would open that file.
            typed = rows.select_columns(wanted).cast_column("image", datasets.Image(decode=False))
            for name in set(wanted) - {"image"}:
                if not isinstance(typed.features[name], datasets.Value):
                    raise ArrowSetError(f"{path}: {name} is {typed.features[name]}, but must be a number")
            return typed
    except InputError:
        raise
    except Exception as error:  # what Arrow, JSON and the file system raise has no common base
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise ArrowSetError(f"{path}: cannot be read as an Arrow set ({reason}); fetch the folder again") from error
    raise ArrowSetError(f"{path}: has the columns {columns}, but must have {wanted}; is it a set of another protocol?")


def _import_datasets(path: str | os.PathLike) -> ModuleType:
    """The package `datasets`: slow to import, and only these sets need it. `path` is for the error message."""
    try:
        import datasets
    except ImportError as error:
        raise ArrowSetError(f"{path}: needs the package `datasets`: pip install datasets ({error})") from error
    return datasets


def _require_files_inside(path: str) -> None:
    """Raise ArrowSetError if the state.json of the set names a file outside its folder."""
    for entry in json.loads(Path(path, "state.json").read_text(encoding="utf-8"))["_data_files"]:
        if os.path.basename(entry["filename"]) != entry["filename"]:
            raise ArrowSetError(
                f"{path}: state.json names {entry['filename']!r}, which is not in the folder; fetch the folder again"
            )


def _order(path: str, index: np.ndarray) -> np.ndarray:
    """For each index 0, 1, ..., the row of its image: int64 [N]. Raises ArrowSetError."""
    order = np.argsort(index, kind="stable")
    wrong = np.flatnonzero(index[order] != np.arange(len(order)))
    if len(wrong):
        raise ArrowSetError(
            f"{path}: `index` must contain each number from 0 to {len(order) - 1} once, but {wrong[0]} is missing or a "
            "smaller number is repeated; fetch the folder again"
        )
    return order


def _flags_of_pairs(path: str, flags: np.ndarray) -> np.ndarray:
    """The flags of the pairs, bool [P]. flags: those of the images [2P], in the order of their index."""
    if len(flags) % 2:
        raise ArrowSetError(f"{path}: {len(flags)} images, but each pair needs two; fetch the folder again")
    first, second = flags[::2], flags[1::2]
    wrong = np.flatnonzero((first != second) | ((first != 0) & (first != 1)))
    if len(wrong):
        index = 2 * wrong[0]
        raise ArrowSetError(
            f"{path}: the images with index {index} and {index + 1} are a pair, but their `is_same` is {flags[index]} "
            f"and {flags[index + 1]} (expected the same flag twice); fetch the folder again"
        )
    return first.astype(bool)
