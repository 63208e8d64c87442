"""Verification sets in .bin files: a pickle of (encoded images, is_same), read through an allow-list."""

import io
import math
import os
import pickle
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.images import decode_rgb, fit
from utils.errors import InputError
from utils.files import atomic_write


class BinError(InputError):
    """A .bin file that is broken, is no verification set, or asks to execute something; the message names the file."""


_LISTS = (list, tuple, np.ndarray)


class VerificationSet(torch.utils.data.Dataset):
    """2P encoded images and P flags; set[positions] decodes to uint8 [n, 112, 112, 3] RGB."""

    def __init__(self, path: str, encoded: list, is_same: np.ndarray) -> None:
        self.path, self.encoded, self.is_same = path, encoded, is_same

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        images = [self._image(int(position)) for position in positions]
        return torch.from_numpy(np.stack(images))

    def _image(self, position: int) -> np.ndarray:
        return fit(decode_rgb(self.encoded[position], f"{self.path}: image {position}"))


def read_bin(path: str | os.PathLike) -> VerificationSet:
    """Read a .bin set. Nothing in it is executed: the pickle may name NumPy's array constructors only."""
    path = str(path)
    with open(path, "rb") as file:
        data = file.read()
    try:
        content = _AllowListUnpickler(io.BytesIO(data), encoding="bytes").load()
    except _Forbidden as error:
        raise BinError(f"{path}: refused: the pickle asks for {error}, which no verification set needs") from None
    except Exception as error:  # a broken pickle raises nearly any exception
        reason = f"{type(error).__name__}: {error}"
        raise BinError(f"{path}: broken or cut short ({reason}); fetch it again") from error
    return VerificationSet(path, *_checked(path, content))


def write_bin(path: str | os.PathLike, encoded: Sequence[bytes], is_same: Sequence[bool]) -> None:
    """Write a .bin set as the public ones are, readable by Python 2 and 3: images 2i and 2i + 1 are pair i."""
    if len(encoded) != 2 * len(is_same):
        raise BinError(f"{path}: {len(encoded)} images for {len(is_same)} pairs; there must be two a pair")
    with atomic_write(path) as file:
        pickle.dump(([bytes(image) for image in encoded], [bool(flag) for flag in is_same]), file, protocol=2)


def _checked(path: str, content: Any) -> tuple[list, np.ndarray]:
    if not (
        isinstance(content, tuple | list) and len(content) == 2 and all(isinstance(part, _LISTS) for part in content)
    ):
        raise BinError(f"{path}: holds no pair (images, is_same)")
    encoded, is_same = (() if isinstance(part, np.ndarray) and part.ndim == 0 else part for part in content)
    # Before anything is made of them: an array of 10^12 rows of 0 bytes takes no room in the file.
    if len(encoded) != 2 * len(is_same) or not len(encoded):
        raise BinError(f"{path}: {len(encoded)} images and {len(is_same)} flags; a set has two images a pair")
    if not all(isinstance(flag, int | np.bool_ | np.integer) for flag in is_same):
        raise BinError(f"{path}: is_same is no list of flags")
    encoded, is_same = list(encoded), np.array([bool(flag) for flag in is_same])
    for number, image in enumerate(encoded):
        is_array = isinstance(image, np.ndarray) and image.dtype == np.uint8
        if not (is_array or isinstance(image, bytes | bytearray)):
            raise BinError(f"{path}: image {number} is {type(image).__name__}, not encoded bytes")
    return [image.reshape(-1) if isinstance(image, np.ndarray) else image for image in encoded], is_same


def require_size(version: int, shape: tuple, dtype: np.dtype, is_fortran: bool, data: bytes | list) -> None:
    """Raise UnpicklingError where the state of a pickled array has not as many bytes as its shape says.

    NumPy would say so too, but calls a number that is too large for it out of memory.
    """
    size = dtype.itemsize if isinstance(data, bytes) else 1  # objects are a list
    if len(shape) > 64 or math.prod(shape) * size != len(data):
        raise pickle.UnpicklingError("an array of another size than its shape says")


class _Forbidden(pickle.UnpicklingError):
    pass


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocol 2; other codecs have no business in a set."""
    if encoding not in ("latin1", b"latin1"):
        raise _Forbidden(f"the codec {encoding!r}")
    return text.encode("latin1")


# The three below take what NumPy writes of an array and nothing else: a shape alone would claim memory that the file
# has no bytes for.
_NDARRAY = object()  # stands for numpy.ndarray, which pickles only name


def _dtype(name: str, *align_and_copy: bool) -> np.dtype:
    if not re.fullmatch(r"[|<>=]?[biu][1248]", str(name)):
        raise _Forbidden(f"an array of {name}")
    return np.dtype(name, copy=True)


def _reconstruct(kind: object, shape: tuple, code: bytes) -> np.ndarray:
    if kind is not _NDARRAY or shape != (0,):
        raise _Forbidden("an array without its bytes")
    return np.empty(0, np.int8)


def _frombuffer(data: bytes, dtype: np.dtype, shape: tuple, order: str, *rest: tuple) -> np.ndarray:
    if not isinstance(data, bytes):  # of an array that changes later there would be dangling memory
        raise _Forbidden(f"a view of a {type(data).__name__}")
    return np._core.numeric._frombuffer(data, dtype, shape, order, *rest)


def _array_constructors() -> dict[tuple[str, str], Any]:
    allowed: dict[tuple[str, str], Any] = {("_codecs", "encode"): _encode_latin1}
    for package in ("numpy.core", "numpy._core"):
        allowed[f"{package}.multiarray", "_reconstruct"] = _reconstruct
        allowed[f"{package}.multiarray", "scalar"] = np._core.multiarray.scalar
        allowed[f"{package}.numeric", "_frombuffer"] = _frombuffer
    allowed["numpy", "ndarray"] = _NDARRAY
    allowed["numpy", "dtype"] = _dtype
    return allowed


# Dicts and sets take 200 bytes for one of the file's; items of arrays can be set in shapes that the file has no bytes
# for; the others make objects in ways that no set of images uses.
_NEEDLESS = "EMPTY_DICT DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET INST OBJ NEWOBJ NEWOBJ_EX EXT1 EXT2 EXT4"


class _AllowListUnpickler(pickle._Unpickler):
    """The unpickler in Python, which lets us look at the state that a pickle gives to what it made.

    NumPy trusts a dtype's state: one that calls pointers plain numbers would let a file choose addresses in memory.
    """

    allowed = _array_constructors()

    def load_build(self) -> None:
        target, state = self.stack[-2:]
        if isinstance(target, np.dtype):
            if state[2:] != (None, None, None, -1, -1, 0):
                raise _Forbidden(f"an array of {target}")
        elif not isinstance(target, np.ndarray) or target.size:
            raise _Forbidden(f"attributes of a {type(target).__name__}")
        else:
            require_size(*state)
        super().load_build()

    def load_needless(self) -> None:
        raise _Forbidden("an object that is neither list nor bytes nor array")

    dispatch = pickle._Unpickler.dispatch | {
        **dict.fromkeys((getattr(pickle, name)[0] for name in _NEEDLESS.split()), load_needless),
        pickle.BUILD[0]: load_build,
        # Python's own makes a bytearray of the length that the file claims before it looks for the bytes.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
    }

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self.allowed[module, name]
        except KeyError:
            raise _Forbidden(f"{module}.{name}") from None
