"""Template sets in CVLFace's Arrow layout: a folder of aligned images with an index, and metadata.pt beside them."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError
from utils.images import decode_aligned


class TemplateSetError(InputError):
    """A template set that is broken, incomplete or asks to execute something; the message names file and fix."""


class TemplateSet(torch.utils.data.Dataset):
    """N encoded images in the order of their index; set[positions] decodes to uint8 [n, 112, 112, 3] RGB.

    metadata: what metadata.pt holds, by key. `per_image` names keys that must be there with one entry an image (row i
    is image i), `others` keys that must be there with any length. Raises TemplateSetError.
    """

    def __init__(self, path: str | os.PathLike, per_image: Sequence[str] = (), others: Sequence[str] = ()) -> None:
        self.path = str(path)
        self._rows = _open(self.path)
        self._order = _order(self.path, self._rows)
        self.metadata = read_metadata(Path(self.path, "metadata.pt"))
        _check_metadata(self, per_image, others)

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        entries = self._rows[self._order[list(positions)].tolist()]["image"]
        images = [self._image(*pair) for pair in zip(positions, entries, strict=True)]
        return torch.from_numpy(np.stack(images))

    def _image(self, position: int, entry: dict[str, Any] | None) -> np.ndarray:
        name = f"{self.path}: image with index {position}"
        if entry is None or entry["bytes"] is None:
            raise TemplateSetError(f"{name} is missing; save the set anew with the bytes of every image in it")
        return decode_aligned(entry["bytes"], name)


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The dict in a metadata.pt. Nothing in it is executed: it may hold tensors, plain values and NumPy arrays only."""
    if not os.path.isfile(path):
        raise TemplateSetError(f"{path}: no such file; it belongs to the set: fetch the whole folder")
    try:
        with torch.serialization.safe_globals(_array_constructors()):
            metadata = torch.load(path, "cpu", weights_only=True)
    except Exception as error:  # a broken pickle raises nearly any exception
        forbidden = re.search(r"GLOBAL ([\w.]+)", str(error))
        if forbidden:
            problem = f"refused: it asks for {forbidden[1]}, which no metadata needs"
        else:
            problem = (
                f"broken, cut short, or no file that torch.save writes by default ({type(error).__name__}); "
                "fetch it again, or save it anew as a dict of NumPy arrays and lists"
            )
        raise TemplateSetError(f"{path}: {problem}") from error
    if not isinstance(metadata, dict):
        raise TemplateSetError(f"{path}: holds no dict of arrays by name, but {type(metadata).__name__}")
    return metadata


def _open(path: str) -> Any:
    """The folder as datasets.Dataset, memory-mapped, with images left encoded."""
    try:
        import datasets  # slow to import, and needed for these sets only
    except ImportError as error:
        raise TemplateSetError(f"{path}: is read by the package `datasets`: pip install datasets ({error})") from error
    try:
        rows = datasets.load_from_disk(path)
        columns = rows.column_names
        if isinstance(columns, list) and {"image", "index"} <= set(columns):
            return rows.select_columns(["image", "index"]).cast_column("image", datasets.Image(decode=False))
    except Exception as error:  # what Arrow, JSON and the file system raise has no common base
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise TemplateSetError(f"{path}: cannot be read as an Arrow set ({reason}); fetch the folder again") from error
    raise TemplateSetError(f"{path}: has the columns {columns}; a template set has `image` and `index`")


def _order(path: str, rows: Any) -> np.ndarray:
    """Row of the image with index 0, 1, ...: int64 [N]."""
    index = rows.select_columns(["index"]).with_format("numpy")[:]["index"]
    order = np.argsort(index, kind="stable")
    wrong = np.flatnonzero(index[order] != np.arange(len(order)))
    if len(wrong):
        raise TemplateSetError(
            f"{path}: `index` must number the {len(order)} images from 0 on, each once: number {wrong[0]} is missing, "
            "or one before it repeated; fetch the folder again"
        )
    return order


def _check_metadata(images: TemplateSet, per_image: Sequence[str], others: Sequence[str]) -> None:
    path = Path(images.path, "metadata.pt")
    missing = [name for name in (*per_image, *others) if name not in images.metadata]
    if missing:
        raise TemplateSetError(
            f"{path}: has no {', '.join(missing)}, but {', '.join(map(str, images.metadata))}; "
            "is it another protocol's set?"
        )
    for name in per_image:
        if len(images.metadata[name]) != len(images):
            raise TemplateSetError(
                f"{path}: {len(images.metadata[name])} {name} for the {len(images)} images beside it; fetch both again"
            )


def _array_constructors() -> list:
    """What a pickled array or scalar names, under the package names of NumPy 1 and NumPy 2."""
    multiarray = np._core.multiarray
    constructors = [
        (getattr(multiarray, name), f"numpy.{package}.multiarray.{name}")
        for package in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ]
    return [np.ndarray, np.dtype, *{type(np.dtype(code)) for code in np.typecodes["All"]}, *constructors]
