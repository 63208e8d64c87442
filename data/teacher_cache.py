"""Read teacher embeddings of a training set from a file, for each image and its mirror image.

`<name>.npy` is mapped into memory; `<name>.json` describes its content. data/teacher_cache_writer.py writes both. The
array is float16 [images, 2, D], or, for the type "int8", [images, 2] with the fields `scale` (float32) and `row`
(int8 [D]): the embedding is scale * row.
"""

import json
import os
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError, describe_error
from utils.files import size_text

# How the embeddings were made: section -> name -> value. A file is used only if all sections except "about" are as
# expected.
Description = dict[str, dict[str, Any]]


class EmbeddingError(InputError):
    """A file of embeddings that is broken, or was made with other settings. The message names file and difference."""


class TeacherEmbeddings:
    """The teacher's embeddings of a training set, in the order of its images.

    identity: the network, colours and checksum of what made them, which a resumed run must find again.
    """

    identity: str

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        """Embeddings, float16 [B, D], of the images at `positions` [B]; of the mirror image if flips [B] is True."""
        raise NotImplementedError

    def write_copies(self, folder: Path) -> None:
        """Write into the folder of a run what it must find there when it is resumed."""


class EmbeddingFile(TeacherEmbeddings):
    """A complete file of embeddings. Raises EmbeddingError if its description differs from `wanted`."""

    def __init__(self, path: str | os.PathLike, wanted: Description) -> None:
        self.path = Path(path)
        self.description = read_description(self.path)
        require_same(self.path, self.description, wanted)
        stored, shape, row = self._open(), shape_of(self.description), row_type(self.description)
        if stored.dtype != row.base or stored.shape != (*shape[:2], *row.shape):
            raise EmbeddingError(
                f"{self.path}: contains {stored.dtype} {list(stored.shape)}, but its description says "
                f"{self.description['embeddings']['type']} {list(shape)}; remove both files to make them again"
            )
        self._stored: np.memmap | None = None
        self._file: BinaryIO | None = None
        self.dimensions = shape[2]
        self.identity = teacher_identity(self.description.get("teacher", {}))
        if row.names:
            self.identity += ", rounded to int8"

    def summary(self) -> str:
        """One line: the teacher, the images and the size of the file."""
        about, teacher = self.description.get("about", {}), self.description.get("teacher", {})
        weights = str(teacher.get("sha256"))[:12]
        return (
            f"{teacher.get('network')} from {about.get('teacher')}, weights sha256 {weights}, by its "
            f"embeddings of {about.get('data')} in {self.path} ({size_text(self.path.stat().st_size)})"
        )

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        if self._stored is None:  # the first call in this process
            self._stored = self._open()
            self._file = open(self.path, "rb")  # noqa: SIM115 - open as long as the map
        views = flips.astype(np.intp)
        self._read_ahead(positions, views)
        return decode(self._stored[positions, views])

    def _read_ahead(self, positions: np.ndarray, views: np.ndarray) -> None:
        """Let the kernel read all these rows at once.

        Otherwise it reads one after the other, and much of the file around each: it expects a sequential reader.
        """
        image, view = self._stored.strides[:2]
        for start in (self._stored.offset + positions * image + views * view).tolist():
            os.posix_fadvise(self._file.fileno(), start, view, os.POSIX_FADV_WILLNEED)

    def _open(self) -> np.memmap:
        try:
            return np.lib.format.open_memmap(self.path, mode="r")
        except FileNotFoundError:
            raise
        except Exception as error:  # NumPy's errors for a broken header have no common base class
            raise EmbeddingError(
                f"{self.path}: broken or cut short ({describe_error(error)}); remove it to make it again"
            ) from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stored": None, "_file": None}


def teacher_identity(teacher: dict[str, str]) -> str:
    """What distinguishes a teacher from all others, in words. teacher: the section "teacher" of a description."""
    identity = f"{teacher.get('network')}, {teacher.get('colours')}, sha256 {str(teacher.get('sha256'))[:16]}"
    if "scale" in teacher:
        identity += f", {teacher['scale']}"
    if "landmarks_sha256" in teacher:
        identity += f", key points sha256 {str(teacher['landmarks_sha256'])[:16]}"
    return identity


def differences(actual: Description, wanted: Description) -> list[str]:
    """The values in `wanted` that are other ones in `actual`, in words. The section "about" is not compared."""
    return [
        f"{section}.{name} is {actual.get(section, {}).get(name)!r}, not {value!r}"
        for section, values in wanted.items()
        if section != "about"
        for name, value in values.items()
        if actual.get(section, {}).get(name) != value
    ]


def require_same(path: Path, actual: Description, wanted: Description) -> None:
    """Raise EmbeddingError if there are differences between a file of embeddings and what is wanted."""
    if different := differences(actual, wanted):
        size, kind = (any(text.startswith(f"embeddings.{name} ") for text in different) for name in ("shape", "type"))
        raise EmbeddingError(
            f"{path}: made with other settings: {'; '.join(different)}. "
            + ("For another number of dimensions, set teacher_projection=pca or embedding_size. " if size else "")
            + ("For a file that exists, set teacher_embeddings_type to its type. " if kind else "")
            + "Set teacher_embeddings to another file, or remove this file to make it again"
        )


def description_path(path: Path) -> Path:
    """The path of the description of the embeddings in `path`."""
    return path.with_suffix(".json")


def read_description(path: Path) -> Description:
    """The description of the embeddings in `path`. Raises EmbeddingError."""
    try:
        description = json.loads(description_path(path).read_bytes())
        row_type(description)
        if not all(isinstance(section, dict) for section in description.values()):
            raise TypeError("a section is not a dict")
    except FileNotFoundError:
        raise EmbeddingError(
            f"{description_path(path)}: missing, so it is unknown what {path} contains; remove {path.name} to make "
            "both again"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EmbeddingError(
            f"{description_path(path)}: not a description of embeddings; remove it and {path.name} to make them again"
        ) from error
    return description


def shape_of(description: Description) -> tuple[int, int, int]:
    """(images, views, dimensions) of the embeddings."""
    images, views, dimensions = description["embeddings"]["shape"]
    return int(images), int(views), int(dimensions)


def row_type(description: Description) -> np.dtype:
    """The type of one embedding in the file."""
    dimensions = shape_of(description)[2]
    types = {
        "float16": np.dtype(("<f2", (dimensions,))),
        "int8": np.dtype([("scale", "<f4"), ("row", "i1", (dimensions,))]),
    }
    return types[description["embeddings"]["type"]]


def encode(values: Tensor, row: np.dtype) -> np.ndarray:
    """Embeddings other than 0, float32 [n, 2, D], as they are stored with the type `row`, of `row_type`.

    For int8, the scale of an embedding is its largest magnitude divided by 127, and numbers are rounded to nearest.
    """
    if not row.names:
        return values.half().numpy()
    scale = values.abs().amax(2) / 127
    stored = np.empty(values.shape[:2], row)
    stored["scale"] = scale
    stored["row"] = (values / scale[..., None]).round()
    return stored


def decode(stored: np.ndarray) -> Tensor:
    """Stored embeddings [...] as float16 [..., D]."""
    if not stored.dtype.names:
        return torch.from_numpy(stored)
    return torch.from_numpy(stored["scale"][..., None] * stored["row"]).half()
