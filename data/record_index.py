"""The index of a record file: the keys and offsets of its records.

The index is a text file. Parsing 42 million lines takes seconds and gigabytes, so a large index is parsed once, and its
arrays are stored beside it. All later processes map this file, and share its memory.
"""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import numpy as np

from utils.errors import InputError
from utils.files import atomic_write
from utils.text import read_text

MIN_BYTES_TO_STORE = 50_000_000  # of the text: about 3 million lines, which take a second


class RecordError(InputError):
    """A record file, its index or a record does not follow the format. The message names it."""


class RecordIndex(NamedTuple):
    """keys, offsets: int64 [N] each, by ascending key, each key once; last: the position of the largest offset."""

    keys: np.ndarray
    offsets: np.ndarray
    last: int


def open_index(path: str | os.PathLike, rec_path: str | os.PathLike, rec_size: int, end: int) -> RecordIndex:
    """The index at `path` of the record file at `rec_path`, which has `rec_size` bytes.

    end: the first offset at which no record can start any more. Raises RecordError.
    """
    path = Path(path)
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if status.st_size < MIN_BYTES_TO_STORE:
            return _parse(path, rec_path, rec_size, end)
        if stored := _read_stored(path, status, rec_size):
            return stored
        with suppress(OSError):  # a file system without locks: each process then parses the index
            fcntl.flock(file, fcntl.LOCK_EX)  # one process parses it, and the others wait
        if stored := _read_stored(path, status, rec_size):
            return stored
        index = _parse(path, rec_path, rec_size, end)
        with suppress(OSError):  # a folder that cannot be written
            _store(path, status, rec_size, index)
        return _read_stored(path, status, rec_size) or index


def read_index(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """(keys, offsets), int64 [N] each, from an .idx file with a line key<TAB>offset per record. Raises RecordError."""
    try:
        text = read_text(path).strip()
        values = np.fromstring(text, dtype=np.int64, sep=" ")
    except ValueError:
        text, values = b"?", np.empty(0, dtype=np.int64)
    lines = text.count(b"\n") + 1
    if len(values) != 2 * lines or text.count(b"\t") != lines:
        problem = "is empty" if not text else "has lines other than key<TAB>offset"
        raise RecordError(f"{path}: the index {problem}; fetch it again, or make the set with tools/make_rec.py")
    return values[0::2].copy(), values[1::2].copy()


def _parse(path: Path, rec_path: str | os.PathLike, rec_size: int, end: int) -> RecordIndex:
    keys, offsets = read_index(path)
    outside = np.flatnonzero((offsets < 0) | (offsets > end) | (offsets % 4 != 0))
    if len(outside):
        first = outside[0]
        raise RecordError(
            f"{path}: key {keys[first]} points to byte {offsets[first]}, but {rec_path} ({rec_size} bytes) cannot have "
            "a record there; the index belongs to another file, or the record file was cut short: fetch both again"
        )
    if (keys[1:] <= keys[:-1]).any():
        order = np.argsort(keys, kind="stable")
        keys, offsets = keys[order], offsets[order]
        if len(repeated := np.flatnonzero(keys[1:] == keys[:-1])):
            raise RecordError(f"{path}: key {keys[repeated[0]]} is listed twice; fetch it again")
    return RecordIndex(keys, offsets, int(np.argmax(offsets)))


def stored_path(path: Path) -> Path:
    """The file with the arrays of a large index: int64 [2, N + 2].

    The first row has the keys, the size of the record file and the size of the index; the second row the offsets, the
    position of the largest one, and 0. A new index is noticed by its size, and by its time, which this file has too.
    """
    return path.with_name(f".{path.name}.npy")


def _store(path: Path, status: os.stat_result, rec_size: int, index: RecordIndex) -> None:
    stored = stored_path(path)
    with atomic_write(stored) as file:
        shape = (2, len(index.keys) + 2)
        np.lib.format.write_array_header_1_0(file, {"descr": "<i8", "fortran_order": False, "shape": shape})
        for row, *more in ((index.keys, rec_size, status.st_size), (index.offsets, index.last, 0)):
            row.tofile(file)
            np.array(more, np.int64).tofile(file)
    os.utime(stored, ns=(status.st_mtime_ns, status.st_mtime_ns))


def _read_stored(path: Path, status: os.stat_result, rec_size: int) -> RecordIndex | None:
    """The stored arrays, or None if there are none of this index and a record file of this size."""
    stored = stored_path(path)
    try:
        if stored.stat().st_mtime_ns != status.st_mtime_ns:
            return None
        keys, offsets = np.lib.format.open_memmap(stored, mode="r").view(np.ndarray)
    except Exception:  # none, or broken: NumPy's errors for a broken header have no common base class
        return None
    last = int(offsets[-2])
    if tuple(keys[-2:]) != (rec_size, status.st_size) or not 0 <= last < len(keys) - 2:
        return None
    return RecordIndex(keys[:-2], offsets[:-2], last)
