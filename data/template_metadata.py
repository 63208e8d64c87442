"""The metadata of a template set: a dict of arrays and lists in metadata.pt, a file that is read but never executed."""

import os
import pickle
import sys
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data import WHERE_TO_GET
from data.safe_pickle import ForbiddenError, SafeArray, SafeDtype, numpy_stand_ins
from utils.errors import InputError
from utils.file_kinds import describe_other_kind
from utils.weights import refuse_inflated

# Types of entries, as the letters of NumPy's dtype.kind.
INTEGERS, NUMBERS, TEXTS = "biu", "biuf", "U"
_DESCRIPTIONS = {INTEGERS: "integers", NUMBERS: "numbers", TEXTS: "texts"}
MAX_TEXT = 1024  # characters of a path in the metadata


class ArrowSetError(InputError):
    """An Arrow set that is broken or incomplete, or that asks to execute code. The message says what to do."""


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The dict in a metadata.pt: tensors, plain values and NumPy arrays by name. Nothing in the file is executed.

    Raises ArrowSetError.
    """
    if not os.path.isfile(path):
        raise ArrowSetError(f"{path}: no such file; it belongs to the set: fetch the whole folder; {WHERE_TO_GET}")
    if kind := describe_other_kind(path, torch_file=True):
        raise ArrowSetError(f"{path}: not metadata, but {kind}")
    try:
        refuse_inflated(path)
        metadata = _load_without_executing(path)
    except ForbiddenError as error:
        raise ArrowSetError(f"{path}: refused: it asks for {error}, which no metadata needs") from error
    except Exception as error:  # a broken pickle raises nearly any exception
        raise ArrowSetError(
            f"{path}: broken, cut short, or not in the default format of torch.save ({type(error).__name__}); "
            "fetch it again, or save it again as a dict of NumPy arrays and lists"
        ) from error
    if not isinstance(metadata, dict):
        raise ArrowSetError(f"{path}: must contain a dict of arrays by name, but contains {type(metadata).__name__}")
    max_bytes = os.path.getsize(path)
    return {key: _plain(f"{path}: {key!s:.80}", value, max_bytes) for key, value in metadata.items()}


def _load_without_executing(path: str | os.PathLike) -> Any:
    """torch.load, which here accepts NumPy arrays too. Raises ForbiddenError if the file names any other class."""
    with torch.serialization.safe_globals([(value, name) for name, value in numpy_stand_ins(SafeDtype).items()]):
        try:
            return torch.load(path, "cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            if isinstance(error.__context__, ForbiddenError):  # raised by a stand-in, then replaced by torch's error
                raise error.__context__ from None
            # torch can list the names in a zip archive, but not in the older format.
            if zipfile.is_zipfile(path) and (names := torch.serialization.get_unsafe_globals_in_checkpoint(path)):
                raise ForbiddenError(", ".join(names)) from error
            raise


def _plain(name: str, value: Any, max_bytes: int) -> Any:
    """A value of the metadata, in a form that is safe to use. Raises ArrowSetError if it has more than `max_bytes`.

    name: what error messages call the value.
    """
    if isinstance(value, SafeArray):
        value = value.view(np.ndarray)
    if isinstance(value, Tensor):
        try:
            value = value.detach()
            value.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, or of a type that NumPy does not have
            raise ArrowSetError(f"{name}: not a plain tensor; save it as a NumPy array") from error
    if isinstance(value, Tensor | np.ndarray) and value.nbytes > max_bytes:  # expanded: many entries share one number
        raise ArrowSetError(f"{name}: {value.nbytes} bytes, more than the file has; save it as a NumPy array")
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size and value.dtype.itemsize:
        codes = np.frombuffer(value.tobytes(), value.dtype.str[0] + "u4")
        if codes.max() > sys.maxunicode:  # NumPy notices it only when it makes a Python string of the text
            raise ArrowSetError(f"{name}: contains texts with characters that do not exist; fetch it again")
    return value


def check_metadata(
    path: Path, metadata: Mapping[str, Any], images: int, per_image: Mapping[str, str], others: Mapping[str, str]
) -> None:
    """Raise ArrowSetError if a key of the metadata in `path` is missing, or its entries have the wrong type or number.

    per_image: the type of the entries of each key that must have one per image; others: the same for the other keys.
    """
    missing = [name for name in (*per_image, *others) if name not in metadata]
    if missing:
        raise ArrowSetError(
            f"{path}: has no {', '.join(missing)}, only {', '.join(map(str, metadata))}; "
            "is it a set of another protocol?"
        )
    for name, entry_type in {**per_image, **others}.items():
        array = flat_array(metadata[name])
        if array.ndim != 1 or array.dtype.kind not in entry_type:
            shown = f"{type(metadata[name]).__name__} ({array.dtype}, shape {list(array.shape)})"
            raise ArrowSetError(
                f"{path}: {name} must be a list of {_DESCRIPTIONS[entry_type]}, but is {shown}; fetch it again"
            )
    for name in per_image:
        count = len(metadata[name])
        if count != images:
            raise ArrowSetError(f"{path}: {count} {name} for {images} images; fetch the folder again")


def flat_array(entries: Any) -> np.ndarray:
    """The entries as an array: [N] for a flat list of N numbers or texts, 0-dimensional for any other list.

    NumPy must not convert an arbitrary list, because the array could be far larger than the file: a list may contain
    the same list many times, and each text of an array takes as much space as the longest one.
    """
    is_objects = isinstance(entries, np.ndarray) and entries.dtype == object
    if is_objects and entries.ndim != 1:
        return np.array(None)
    if is_objects or isinstance(entries, list | tuple):
        if is_objects or any(isinstance(entry, str) for entry in entries):
            is_flat = all(isinstance(entry, str) and len(entry) <= MAX_TEXT for entry in entries)
        else:
            is_flat = all(isinstance(entry, bool | int | float | np.number | np.bool_) for entry in entries)
        try:
            return np.asarray(list(entries)) if is_flat else np.array(None)
        except OverflowError:  # an integer too large for float64, in a list with floats
            return np.array(None)
    return np.asarray(entries)
