"""Pickles from other people, read without executing anything in them.

A pickle names functions and classes and asks the reader to call them. Here only names from an allow-list are accepted,
and each stands for code of ours that accepts what NumPy writes for an array, and nothing else. That matters because
NumPy trusts a pickled dtype: one that declares pointers to be plain numbers would let a file choose addresses in
memory, and a shape without data would claim memory that the file has no bytes for.
"""

import io
import math
import pickle
import re
from collections.abc import Mapping
from typing import Any

import numpy as np


class ForbiddenError(pickle.UnpicklingError):
    """The pickle asks for something that data does not need; the message says for what."""


class SafeDtype:
    """Stands for numpy.dtype. `dtype` is the real one, of numbers, texts or objects."""

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
    """The same for integers and bool only."""

    pattern = re.compile(r"[|<>=]?[biu][1248]")


class SafeArray(np.ndarray):
    """Stands for numpy.ndarray: empty until the pickle gives it shape, dtype and data, once and of matching sizes."""

    def __new__(cls, *args: Any) -> "SafeArray":
        raise ForbiddenError("an array without its data")

    def __setstate__(self, state: tuple) -> None:
        if self.size:  # views of its memory may exist by now
            raise ForbiddenError("an array that is changed after it was made")
        version, shape, dtype, is_fortran, data = state
        _require_size(shape, dtype.dtype, data)
        super().__setstate__((version, shape, dtype.dtype, is_fortran, data))


def _require_size(shape: tuple, dtype: np.dtype, data: bytes | list) -> None:
    """Raise UnpicklingError where `data` has not the size that the shape states.

    NumPy would refuse it too, but with MemoryError where the shape is too large for it.
    """
    size = dtype.itemsize if isinstance(data, bytes) else 1  # objects are in a list
    if len(shape) > 64 or math.prod(shape) * size != len(data):
        raise pickle.UnpicklingError("an array of another size than its shape states")


def _reconstruct(array_class: type, shape: tuple, code: bytes) -> SafeArray:
    """How pickles start an array; its state follows."""
    if array_class is not SafeArray or shape != (0,):
        raise ForbiddenError("an array without its data")
    return np.ndarray.__new__(SafeArray, shape, np.int8)


def _scalar(dtype: SafeDtype, data: bytes) -> np.generic:
    if dtype.dtype.hasobject:
        raise ForbiddenError("a scalar of an object")
    if len(data) != dtype.dtype.itemsize:
        raise pickle.UnpicklingError("a scalar of another size than its type")
    return np.ndarray((), dtype.dtype, data)[()]


def numpy_stand_ins(dtype: type[SafeDtype]) -> dict[str, Any]:
    """What pickled arrays and scalars name, under the module names of NumPy 1 and NumPy 2: full name -> stand-in."""
    stand_ins: dict[str, Any] = {"numpy.ndarray": SafeArray, "numpy.dtype": dtype}
    for package in ("numpy.core", "numpy._core"):
        stand_ins[f"{package}.multiarray._reconstruct"] = _reconstruct
        stand_ins[f"{package}.multiarray.scalar"] = _scalar
    return stand_ins


def load_lists_of_arrays(data: bytes) -> Any:
    """Unpickle lists and tuples of bytes, numbers and NumPy arrays of integers or bool. Arrays are SafeArray.

    Raises ForbiddenError where the pickle asks for anything else, and nearly any exception where it is broken.
    """
    return _Unpickler(io.BytesIO(data), encoding="bytes").load()


def _encode_latin1(text: str, encoding: str) -> bytes:
    """How Python 3 writes bytes in protocol 2."""
    if encoding not in ("latin1", b"latin1"):
        raise ForbiddenError(f"the codec {encoding!r}")
    return text.encode("latin1")


def _frombuffer(data: bytes, dtype: SafeDtype, shape: tuple, order: str, axes: tuple | None = None) -> np.ndarray:
    """How NumPy writes an array in protocol 5: its memory and the order of its axes."""
    if not isinstance(data, bytes):  # a view of memory that the pickle can still change
        raise ForbiddenError(f"a view of a {type(data).__name__}")
    array = np.frombuffer(data, dtype.dtype)
    if order == "K" and axes is not None:
        return array.reshape(shape).transpose(axes)
    return array.reshape(shape, order=order)


# Opcodes that data files never use. Dicts and sets take 200 bytes of memory for one byte of the file, items can be set
# in arrays, and the others make objects in further ways.
_FORBIDDEN_OPCODES = (
    pickle.EMPTY_DICT, pickle.DICT, pickle.SETITEM, pickle.SETITEMS, pickle.EMPTY_SET, pickle.ADDITEMS,
    pickle.FROZENSET, pickle.INST, pickle.OBJ, pickle.NEWOBJ, pickle.NEWOBJ_EX, pickle.EXT1, pickle.EXT2, pickle.EXT4,
)  # fmt: skip


class _Unpickler(pickle._Unpickler):
    """An unpickler that knows the names above only.

    It derives from the private pickle._Unpickler, the one written in Python: the public pickle.Unpickler does not let
    a subclass refuse opcodes or decide which objects may be given a state.
    """

    allowed: Mapping[str, Any] = {
        **numpy_stand_ins(IntegerDtype),
        "numpy.core.numeric._frombuffer": _frombuffer,
        "numpy._core.numeric._frombuffer": _frombuffer,
        "_codecs.encode": _encode_latin1,
    }

    def find_class(self, module: str, name: str) -> Any:
        # The name is looked up with its module: "a.b" in "c" is not "b" in "c.a".
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
        # The original allocates the length that the file states before it looks for the bytes.
        pickle.BYTEARRAY8[0]: pickle._Unpickler.load_binbytes8,
    }
