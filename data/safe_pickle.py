"""Read pickles from unknown sources without executing anything in them.

A pickle names functions and classes, and asks the reader to call them. This module accepts only a few names, and
replaces each by a stand-in: a function or class that accepts what NumPy writes for an array, and nothing else. NumPy's
own functions would not be safe, because they trust the file. A dtype that declares pointers to be plain numbers would
let the file choose addresses in memory. A shape without data would take much more memory than the file has bytes.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


class ForbiddenError(pickle.UnpicklingError):
    """The pickle asks for something that plain data does not need. The message names it."""


class SafeDtype:
    """Stands for numpy.dtype. `dtype` is the real dtype: of numbers, texts or objects."""

    pattern = re.compile(r"[|<>=]?([biufcSU]\d+|O8?)")

    def __init__(self, name: str, align: bool = False, copy: bool = True) -> None:
        if not self.pattern.fullmatch(str(name)):
            raise ForbiddenError(f"an array of {name!s:.80}")
        self.dtype = np.dtype(name)

    def __setstate__(self, state: tuple) -> None:
        self.dtype = self.dtype.newbyteorder(state[1])
        if state != self.dtype.__reduce__()[2]:
            raise ForbiddenError(f"an array of {self.dtype} with the state {state!s:.80}")


class IntegerDtype(SafeDtype):
    """Stands for numpy.dtype too, but accepts only integers and bool."""

    pattern = re.compile(r"[|<>=]?[biu][1248]")


class SafeArray(np.ndarray):
    """Stands for numpy.ndarray. It is empty until the pickle sets its shape, dtype and data.

    The pickle may do so only once, and the sizes of shape and data must match.
    """

    def __new__(cls, *args: Any) -> "SafeArray":
        raise ForbiddenError("an array without its data")

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # it was set before, and views of its memory may exist
            raise ForbiddenError("an array that is changed after it was made")
        version, shape, dtype, is_fortran, data = state
        _require_size(shape, dtype.dtype, data)
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))


def _require_size(shape: tuple, dtype: np.dtype, data: bytes | list) -> None:
    """Raise UnpicklingError if the size of `data` is not the one that shape and dtype state.

    NumPy would refuse this too, but with a MemoryError if the stated size is very large.
    """
    size = dtype.itemsize if isinstance(data, bytes) else 1  # objects are in a list
    if len(shape) > 64 or math.prod(shape) * size != len(data):
        raise pickle.UnpicklingError("an array of another size than its shape states")


def _reconstruct(array_class: type, shape: tuple, code: bytes) -> SafeArray:
    """Stands for the function with which pickles create an array. The state of the array follows in the pickle."""
    if array_class is not SafeArray or shape != (0,):
        raise ForbiddenError("an array without its data")
    return np.ndarray.__new__(SafeArray, shape, np.int8)


def _scalar(dtype: SafeDtype, data: bytes) -> np.generic:
    """Stands for the function with which pickles create a NumPy scalar."""
    if dtype.dtype.hasobject:
        raise ForbiddenError("a scalar of an object")
    if len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a scalar of another size than its type")
    return np.ndarray((), dtype.dtype, data)[()]


def numpy_stand_ins(dtype: type[SafeDtype]) -> dict[str, Any]:
    """Full name -> stand-in, for all names in pickled arrays and scalars, as NumPy 1 and NumPy 2 write them.

    dtype: the stand-in for numpy.dtype.
    """
    stand_ins: dict[str, Any] = {"numpy.ndarray": SafeArray, "numpy.dtype": dtype}
    for package in ("numpy.core", "numpy._core"):
        stand_ins[f"{package}.multiarray._reconstruct"] = _reconstruct
        stand_ins[f"{package}.multiarray.scalar"] = _scalar
    return stand_ins


def load_lists_of_arrays(file: io.BytesIO) -> Any:
    """Unpickle lists and tuples of bytes, numbers and NumPy arrays of integers or bool. Arrays are SafeArray.

    The position of the file is then behind the pickle. Raises ForbiddenError if the pickle asks for anything else. A
    broken pickle may raise almost any exception.
    """
    return _Unpickler(file, encoding="bytes").load()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, with which Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ForbiddenError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _frombuffer(data: bytes, dtype: SafeDtype, shape: tuple, order: str, axes: tuple | None = None) -> np.ndarray:
    """Stands for the function with which NumPy creates an array in protocol 5, from its memory and order of axes."""
    if not isinstance(data, bytes):  # a view of memory that the pickle can still change
        raise ForbiddenError(f"a view of a {type(data).__name__}")
    array = np.frombuffer(data, dtype.dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


# Opcodes that data files never use. Dicts and sets take 200 bytes of memory per byte of the file, SETITEM could change
# an array, and the others are further ways to create objects.
_FORBIDDEN_OPCODES = (
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_SET, pickle.ADDITEMS,
    pickle.FROZENSET, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
)  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """An unpickler that accepts only the names in `allowed`.

    It derives from the private pickle._Unpickler, which is written in Python. A subclass of the public pickle.Unpickler
    could not refuse opcodes, or decide which objects may get a state.
    """

    allowed: Mapping[str, Any] = {
        **numpy_stand_ins(IntegerDtype),
        "numpy.core.numeric._frombuffer": _frombuffer,
        "numpy._core.numeric._frombuffer": _frombuffer,
        "_codecs.encode": _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        # A name with a dot is refused: "b.c" in module "a" must not be taken for "c" in module "a.b".
        stand_in = self.allowed.get(f"{module}.{name}") if "." not in name else None
        if stand_in is None:
            raise ForbiddenError(f"{module}.{name}")
        return stand_in

    def load_build(self) -> None:
        target = self.stack[-2]
        if not isinstance(target, SafeDtype | SafeArray):
            raise ForbiddenError(f"attributes of a {type(target).__name__}")
        super().load_build()

    def refuse_opcode(self) -> None:
        raise ForbiddenError("an object that is neither list nor bytes nor array")

    dispatch = pickle._Unpickler.dispatch | {
        **dict.fromkeys((opcode[0] for opcode in _FORBIDDEN_OPCODES), refuse_opcode),
        pickle.BUILD[0]: load_build,
        # The original method allocates as many bytes as the file states, before it knows whether the file has them.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
    }
