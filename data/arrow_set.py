"""Sets in CVLFace's Arrow layout, a folder of images with an index: template sets, with metadata.pt beside the images,
and verification sets, with a flag to each image."""

import json
import os
import pickle
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.bin_set import require_size
from data.images import decode_aligned, decode_rgb, fit
from utils.errors import InputError
from utils.weights import refuse_inflated

# Kinds of entries, as NumPy's dtype.kind calls them.
INTEGERS, NUMBERS, TEXTS = "biu", "biuf", "U"
_IN_WORDS = {INTEGERS: "whole numbers", NUMBERS: "numbers", TEXTS: "texts"}
_NOTHING: Mapping[str, str] = {}
LONGEST_TEXT = 1024  # characters of a path in the metadata


class TemplateSetError(InputError):
    """An Arrow set that is broken, incomplete or asks to execute something; the message names file and fix."""


class _ArrowImages(torch.utils.data.Dataset):
    """N encoded images in the order of their index; set[positions] decodes to uint8 [n, 112, 112, 3] RGB."""

    _decode = staticmethod(decode_aligned)

    def __init__(self, path: str | os.PathLike, *columns: str) -> None:
        self.path = str(path)
        self._rows = _open(self.path, ["image", "index", *columns])
        self._order = _order(self.path, self._column("index"))

    def _column(self, name: str) -> np.ndarray:
        return self._rows.select_columns([name]).with_format("numpy")[:][name]

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
        return self._decode(entry["bytes"], name)


class TemplateSet(_ArrowImages):
    """N encoded images in the order of their index; set[positions] decodes to uint8 [n, 112, 112, 3] RGB.

    metadata: what metadata.pt holds, by key. `per_image` names keys that must be there with one entry an image (row i
    is image i), `others` keys that must be there with any length, each with the kind of its entries (INTEGERS, NUMBERS
    or TEXTS). Raises TemplateSetError.
    """

    def __init__(
        self, path: str | os.PathLike, per_image: Mapping[str, str] = _NOTHING, others: Mapping[str, str] = _NOTHING
    ) -> None:
        super().__init__(path)
        self.metadata = read_metadata(Path(self.path, "metadata.pt"))
        _check_metadata(self, per_image, others)


class ArrowVerificationSet(_ArrowImages):
    """2P encoded images, those with index 2i and 2i + 1 pair i; set[positions] -> uint8 [n, 112, 112, 3] RGB.

    is_same: bool [P], from the column of that name, which has a pair's flag at both images. Images of another size are
    fitted as those of .bin sets are. Raises TemplateSetError.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        super().__init__(path, "is_same")
        self.is_same = _flags_of_pairs(self.path, self._column("is_same")[self._order])

    def _decode(self, encoded: bytes, name: str) -> np.ndarray:
        return fit(decode_rgb(encoded, name))


def read_metadata(path: str | os.PathLike) -> dict[str, Any]:
    """The dict in a metadata.pt. Nothing in it is executed: it may hold tensors, plain values and NumPy arrays only."""
    if not os.path.isfile(path):
        raise TemplateSetError(f"{path}: no such file; it belongs to the set: fetch the whole folder")
    try:
        refuse_inflated(path)
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
    room = os.path.getsize(path)
    return {key: _plain(f"{path}: {key!s:.80}", value, room) for key, value in metadata.items()}


def _plain(name: str, value: Any, room: int) -> Any:
    """An entry of the metadata as others may use it: its tensors and arrays take at most `room` bytes."""
    if isinstance(value, _Array):
        value = value.view(np.ndarray)
    if isinstance(value, Tensor):
        try:
            value = value.detach()
            value.numpy()
        except (TypeError, RuntimeError) as error:  # sparse, quantized, of a type that NumPy has not
            raise TemplateSetError(f"{name}: no plain tensor; save it as a NumPy array") from error
    if isinstance(value, Tensor | np.ndarray) and value.nbytes > room:  # one number that stands for many
        raise TemplateSetError(f"{name}: {value.nbytes} bytes, more than the file has; save it as a NumPy array")
    if isinstance(value, np.ndarray) and value.dtype.kind == "U" and value.size and value.dtype.itemsize:
        codes = np.frombuffer(value.tobytes(), value.dtype.str[0] + "u4")
        if codes.max() > sys.maxunicode:  # NumPy keeps what is no character until it is made a text
            raise TemplateSetError(f"{name}: holds texts with characters that do not exist; fetch it again")
    return value


def _open(path: str, wanted: list[str]) -> Any:
    """The folder's columns `wanted` as datasets.Dataset, memory-mapped, with images left encoded."""
    try:
        import datasets  # slow to import, and needed for these sets only
    except ImportError as error:
        raise TemplateSetError(f"{path}: is read by the package `datasets`: pip install datasets ({error})") from error
    try:
        _stay_inside(path)
        rows = datasets.load_from_disk(path)
        columns = rows.column_names
        if isinstance(columns, list) and set(wanted) <= set(columns):
            # An image is the bytes in the row, and the rest are numbers: `datasets` would open a path in their place.
            typed = rows.select_columns(wanted).cast_column("image", datasets.Image(decode=False))
            for name in set(wanted) - {"image"}:
                if not isinstance(typed.features[name], datasets.Value):
                    raise TemplateSetError(f"{path}: {name} is {typed.features[name]}, but must be a number")
            return typed
    except InputError:
        raise
    except Exception as error:  # what Arrow, JSON and the file system raise has no common base
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        raise TemplateSetError(f"{path}: cannot be read as an Arrow set ({reason}); fetch the folder again") from error
    raise TemplateSetError(f"{path}: has the columns {columns}, but must have {wanted}; is it another protocol's set?")


def _stay_inside(path: str) -> None:
    """Raise TemplateSetError where the set's state.json names a file of images outside its folder."""
    for entry in json.loads(Path(path, "state.json").read_text())["_data_files"]:
        if os.path.basename(entry["filename"]) != entry["filename"]:
            raise TemplateSetError(
                f"{path}: state.json names {entry['filename']!r}, no file of the folder; fetch the folder again"
            )


def _order(path: str, index: np.ndarray) -> np.ndarray:
    """Row of the image with index 0, 1, ...: int64 [N]."""
    order = np.argsort(index, kind="stable")
    wrong = np.flatnonzero(index[order] != np.arange(len(order)))
    if len(wrong):
        raise TemplateSetError(
            f"{path}: `index` must number the {len(order)} images from 0 on, each once: number {wrong[0]} is missing, "
            "or one before it repeated; fetch the folder again"
        )
    return order


def _flags_of_pairs(path: str, flags: np.ndarray) -> np.ndarray:
    """Flags of images [2P], in the order of the index -> of pairs, bool [P]."""
    if len(flags) % 2:
        raise TemplateSetError(f"{path}: {len(flags)} images, but a pair has two; fetch the folder again")
    first, second = flags[::2], flags[1::2]
    wrong = np.flatnonzero((first != second) | ((first != 0) & (first != 1)))
    if len(wrong):
        at = 2 * wrong[0]
        raise TemplateSetError(
            f"{path}: the images with index {at} and {at + 1} are a pair, but have {flags[at]} and {flags[at + 1]} as "
            "`is_same`, which must be the same flag twice; fetch the folder again"
        )
    return first.astype(bool)


def _check_metadata(images: TemplateSet, per_image: Mapping[str, str], others: Mapping[str, str]) -> None:
    path = Path(images.path, "metadata.pt")
    missing = [name for name in (*per_image, *others) if name not in images.metadata]
    if missing:
        raise TemplateSetError(
            f"{path}: has no {', '.join(missing)}, but {', '.join(map(str, images.metadata))}; "
            "is it another protocol's set?"
        )
    for name, kinds in {**per_image, **others}.items():
        array = _as_array(images.metadata[name])
        if array.ndim != 1 or array.dtype.kind not in kinds:
            raise TemplateSetError(
                f"{path}: {name} must be a list of {_IN_WORDS[kinds]}, but is {type(images.metadata[name]).__name__} "
                f"({array.dtype}, shape {list(array.shape)}); fetch it again"
            )
    for name in per_image:
        if len(images.metadata[name]) != len(images):
            raise TemplateSetError(
                f"{path}: {len(images.metadata[name])} {name} for the {len(images)} images beside it; fetch both again"
            )


def _as_array(entries: Any) -> np.ndarray:
    """Entries as an array, one of no dimension where they are no flat list; texts also from an array of objects.

    What NumPy made of any list could be larger than the file: it follows a list that holds another one many times, and
    gives each text the room of the longest.
    """
    is_objects = isinstance(entries, np.ndarray) and entries.dtype == object
    if is_objects and entries.ndim != 1:
        return np.array(None)
    if is_objects or isinstance(entries, list | tuple):
        if is_objects or any(isinstance(entry, str) for entry in entries):
            is_flat = all(isinstance(entry, str) and len(entry) <= LONGEST_TEXT for entry in entries)
        else:
            is_flat = all(isinstance(entry, bool | int | float | np.number | np.bool_) for entry in entries)
        try:
            return np.asarray(list(entries)) if is_flat else np.array(None)
        except OverflowError:  # a whole number that no float holds, beside floats
            return np.array(None)
    return np.asarray(entries)


# Stand-ins for what a pickled array names. NumPy itself trusts a dtype's state: one that calls pointers plain numbers
# would let a file choose addresses in memory. So no state reaches NumPy but the one that it writes for such a dtype.


class _Dtype:
    def __init__(self, name: str, align: bool, copy: bool) -> None:
        if not re.fullmatch(r"[|<>=]?([biufcSU]\d+|O8?)", name):
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype of {name!s:.80}")
        self.plain = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.plain = self.plain.newbyteorder(state[1])
        if state != self.plain.__reduce__()[2]:
            raise pickle.UnpicklingError(f"GLOBAL numpy.dtype with the state {state}")


class _Array(np.ndarray):
    def __new__(cls, *args: Any) -> "_Array":
        raise pickle.UnpicklingError("GLOBAL numpy.ndarray called")

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # a tensor may share its memory by now
            raise pickle.UnpicklingError("GLOBAL numpy.ndarray with two states")
        version, shape, dtype, is_fortran, data = state
        require_size(version, shape, dtype.plain, is_fortran, data)
        super().__setstate__((version, shape, dtype.plain, is_fortran, data))


def _reconstruct(kind: type, shape: tuple, code: bytes) -> np.ndarray:
    """Empty until its state comes, as NumPy writes it: a shape alone would claim memory without bytes in the file."""
    if kind is not _Array or shape != (0,):
        raise pickle.UnpicklingError("GLOBAL numpy.ndarray without its bytes")
    return np._core.multiarray._reconstruct(_Array, (0,), b"b")


def _scalar(dtype: _Dtype, data: bytes) -> np.generic:
    if dtype.plain.hasobject:
        raise pickle.UnpicklingError("GLOBAL numpy.scalar of an object")
    return np._core.multiarray.scalar(dtype.plain, data)


def _array_constructors() -> list:
    """What a pickled array or scalar names, under the package names of NumPy 1 and NumPy 2."""
    constructors = {"_reconstruct": _reconstruct, "scalar": _scalar}
    return [
        (_Array, "numpy.ndarray"),
        (_Dtype, "numpy.dtype"),
        *(
            (made, f"numpy.{package}.multiarray.{name}")
            for package in ("core", "_core")
            for name, made in constructors.items()
        ),
    ]
