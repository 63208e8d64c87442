"""Embeddings of a whole training set in one file: float16 [images, 2, D], of each image and of its mirror image.

`<name>.npy` is mapped into memory; `<name>.json` describes the embeddings. data/teacher_cache_writer.py writes both.
"""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

# What the embeddings are of, in sections; all but "about" must agree for a file to be used.
Description = dict[str, dict[str, Any]]


class EmbeddingError(InputError):
    """A file of embeddings that is broken, or not of what is asked for; the message names file and difference."""


class EmbeddingFile:
    """A finished file, which must be of `wanted`, as far as that says. Raises EmbeddingError."""

    def __init__(self, path: str | os.PathLike, wanted: Description) -> None:
        self.path = Path(path)
        self.description = read_description(self.path)
        require_same(self.path, self.description, wanted)
        stored, shape = self._open(), shape_of(self.description)
        if stored.dtype != np.float16 or stored.shape != shape:
            raise EmbeddingError(
                f"{self.path}: holds {stored.dtype} {list(stored.shape)} where its description says float16 "
                f"{list(shape)}; remove both and make it anew"
            )
        self._stored: np.ndarray | None = None

    def summary(self) -> str:
        """A line: whose embeddings, of what, how large."""
        about, teacher = self.description.get("about", {}), self.description.get("teacher", {})
        weights = str(teacher.get("sha256"))[:12]
        return (
            f"{teacher.get('network')} from {about.get('teacher')}, weights sha256 {weights}, by its "
            f"embeddings of {about.get('data')} in {self.path} ({self.path.stat().st_size / 1e9:.2f} GB)"
        )

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        """float16 [B, D]: of each image, or of its mirror image where `flips`."""
        if self._stored is None:  # once a process
            self._stored = self._open()
        return torch.from_numpy(self._stored[positions, flips.astype(np.intp)])

    def _open(self) -> np.ndarray:
        try:
            return np.lib.format.open_memmap(self.path, mode="r")
        except FileNotFoundError:
            raise
        except Exception as error:  # what NumPy raises on a broken header has no common base
            raise EmbeddingError(f"{self.path}: broken or cut short ({error}); remove it and make it anew") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stored": None}


def require_same(path: Path, found: Description, wanted: Description) -> None:
    """Raise EmbeddingError, with the differences, where `found` is not what `wanted` says; "about" has no say."""
    differences = [
        f"{section}.{name} is {found.get(section, {}).get(name)!r}, not {value!r}"
        for section, values in wanted.items()
        if section != "about"
        for name, value in values.items()
        if found.get(section, {}).get(name) != value
    ]
    if differences:
        raise EmbeddingError(
            f"{path}: embeddings of something else: {'; '.join(differences)}. Set teacher_embeddings to another file, "
            "or remove this one to have it made anew"
        )


def description_path(path: Path) -> Path:
    """Where the description of the embeddings in `path` lies."""
    return path.with_suffix(".json")


def read_description(path: Path) -> Description:
    """What the embeddings in `path` are of. Raises EmbeddingError."""
    try:
        description = json.loads(description_path(path).read_text())
        shape_of(description)
        if not all(isinstance(section, dict) for section in description.values()):
            raise TypeError("a section is no dict")
    except FileNotFoundError:
        raise EmbeddingError(f"{description_path(path)}: missing; it says what {path} holds") from None
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise EmbeddingError(f"{description_path(path)}: no description of embeddings; make them anew") from error
    return description


def shape_of(description: Description) -> tuple[int, int, int]:
    """(images, views, dimensions)."""
    images, views, dimensions = description["embeddings"]["shape"]
    return int(images), int(views), int(dimensions)
