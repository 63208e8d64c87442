"""MXNet record files: a reader with random access, and a writer of the same format.

A record has these parts: uint32 magic; uint32 with a part flag (top 3 bits) and a length (low 29 bits); the body; zeros
up to a multiple of 4 bytes. A body that contains the magic at a 4-byte boundary is split there into several parts. The
part flag is 1 for the first, 2 for those in the middle and 3 for the last; it is 0 if the record is not split.

The body has a header `IfQQ` (flag, label, id, id2), then `flag` labels in float32, which replace the label in the
header if there are any, then the bytes of the image.
"""

import mmap
import os
import struct
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from tqdm import tqdm

from data import WHERE_TO_GET
from data.images import SIZE
from data.record_index import RecordError, open_index
from utils.file_kinds import describe_other_kind
from utils.files import atomic_write, make_writable_folder, write_text

MAGIC = 0xCED7230A
_MAGIC_BYTES = struct.pack("<I", MAGIC)
_HEAD = struct.Struct("<II")
_HEADER = struct.Struct("<IfQQ")
_LENGTH_MASK = (1 << 29) - 1
# The start of a record that is not split. `first_label` is a label only if flag > 0.
_START = np.dtype(
    [("magic", "<u4"), ("word", "<u4"), ("flag", "<u4"), ("label", "<f4"), ("ids", "<u8", 2), ("first_label", "<f4")]
)


class Header(NamedTuple):
    """flag: number of labels after the fixed header; label: a float (flag 0) or float32 [flag]; id, id2: integers."""

    flag: int
    label: float | np.ndarray
    id: int
    id2: int


class RecordFile:
    """Random access to the records of a .rec file by their offsets.

    Each process maps the file into its own memory, so a reader can be used after a fork and sent to spawned processes.
    """

    def __init__(self, rec_path: str | os.PathLike) -> None:
        self.rec_path = _existing(rec_path)
        self._size = os.path.getsize(self.rec_path)
        self._map: mmap.mmap | None = None
        self._map_pid = -1

    @property
    def size(self) -> int:
        """Size of the file in bytes."""
        return self._size

    def read_at(self, offset: int, key: int) -> tuple[Header, memoryview, int]:
        """Read the record `key` at `offset`: (header, image bytes, offset of the next record). Raises RecordError.

        The bytes are a view of the file, unless the record is split.
        """
        body, end = self._body(key, offset)
        if len(body) < _HEADER.size:
            raise RecordError(
                f"{self.rec_path}: record {key} has {len(body)} bytes, too few for a header; fetch the set again"
            )
        flag, label, id_, id2 = _HEADER.unpack_from(body)
        start = _HEADER.size + 4 * flag
        if flag:
            if start > len(body):
                raise RecordError(
                    f"{self.rec_path}: record {key} states {flag} labels in {len(body)} bytes; fetch the set again"
                )
            label = np.frombuffer(body, dtype="<f4", count=flag, offset=_HEADER.size)
        return Header(flag, label, id_, id2), body[start:], end

    def _body(self, key: int, offset: int) -> tuple[memoryview, int]:
        """The body of a record, joined from its parts, and the offset of the next record."""
        data = memoryview(self._mapped())
        parts: list[memoryview] = []
        while True:
            if offset + _HEAD.size > self._size:
                raise RecordError(f"{self.rec_path}: record {key} is cut off at the end of the file; fetch it again")
            magic, word = _HEAD.unpack_from(data, offset)
            part_flag, length = word >> 29, word & _LENGTH_MASK
            start = offset + _HEAD.size
            if magic != MAGIC:
                raise RecordError(
                    f"{self.rec_path}: no record at byte {offset}, but the index has key {key} there; fetch both again"
                )
            if start + length > self._size:
                raise RecordError(f"{self.rec_path}: record {key} is cut off at the end of the file; fetch it again")
            if part_flag not in ((2, 3) if parts else (0, 1)):
                raise RecordError(
                    f"{self.rec_path}: record {key} has part flag {part_flag} out of order; fetch the set again"
                )
            parts.append(data[start : start + length])
            offset = start + (length + 3) // 4 * 4
            if part_flag == 0:
                return parts[0], offset
            if part_flag == 3:
                return memoryview(_MAGIC_BYTES.join(parts)), offset

    def _mapped(self) -> mmap.mmap:
        """The file, mapped into the memory of this process."""
        if self._map is None or self._map_pid != os.getpid():
            with open(self.rec_path, "rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._map_pid = os.getpid()
        return self._map

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_map": None}


class IndexedRecordReader(RecordFile):
    """Random access to the records of `rec_path` by the keys in `idx_path`. Raises RecordError.

    keys: int64 [N], ascending. Loader workers are forks, so they share keys and offsets with the main process.
    """

    def __init__(self, rec_path: str | os.PathLike, idx_path: str | os.PathLike) -> None:
        super().__init__(rec_path)
        self.idx_path = _existing(idx_path)
        end = self._size - _HEAD.size
        self.keys, self._offsets, last = open_index(self.idx_path, self.rec_path, self._size, end)
        self.read(int(self.keys[last]))  # reading the last record detects a file that was cut short

    def __len__(self) -> int:
        return len(self.keys)

    def layout(self) -> list[bytes | memoryview]:
        """What identifies the set without reading its records: keys, offsets and the size of the record file."""
        return [memoryview(self.keys), memoryview(self._offsets), str(self._size).encode()]

    def read(self, key: int) -> tuple[Header, memoryview]:
        """(header, image bytes) of the record `key`, as in `read_at`. Raises RecordError."""
        keys = self.keys
        position = int(np.searchsorted(keys, key))
        if position == len(keys) or keys[position] != key:
            raise RecordError(f"{self.idx_path}: no key {key}; there are {len(keys)} from {keys[0]} to {keys[-1]}")
        header, data, _ = self.read_at(int(self._offsets[position]), key)
        return header, data

    def read_batch(self, keys: np.ndarray) -> tuple[np.ndarray, list[np.ndarray]]:
        """First labels, float32 [N], and image bytes of the records `keys` [N]. The bytes are views, as in `read`.

        The starts of all records are read with one array operation. Records that are split or broken are left to
        `read`. Raises RecordError.
        """
        data = np.frombuffer(self._mapped(), dtype=np.uint8)
        positions = np.searchsorted(self.keys, keys).clip(max=len(self) - 1)
        offsets = self._offsets[positions]
        starts = data.take(offsets[:, None] + np.arange(_START.itemsize), mode="clip").view(_START)[:, 0]
        begin = offsets + _HEAD.size + _HEADER.size + 4 * starts["flag"].astype(np.int64)
        end = offsets + _HEAD.size + (starts["word"] & _LENGTH_MASK)
        is_simple = (self.keys[positions] == keys) & (starts["magic"] == MAGIC) & (starts["word"] >> 29 == 0)
        is_simple &= (begin <= end) & (end <= self._size) & (offsets + _START.itemsize <= self._size)
        labels = np.where(starts["flag"] == 0, starts["label"], starts["first_label"])
        images = [data[first:last] for first, last in zip(begin.tolist(), end.tolist(), strict=True)]
        for row in np.flatnonzero(~is_simple):
            header, image = self.read(int(keys[row]))
            labels[row], images[row] = np.ravel(header.label)[0], np.frombuffer(image, dtype=np.uint8)
        return labels, images

    def read_ahead(self, first: int, last: int) -> None:
        """Ask the operating system to read the records from key `first` to key `last` into its page cache.

        Does nothing if the file has them in another order.
        """
        start, stop = np.searchsorted(self.keys, [first, last])
        offsets = self._offsets[start : stop + 2]  # with the record that follows, if there is one
        if stop + 1 == len(self):
            offsets = np.append(offsets, self._size)
        if (np.diff(offsets) > 0).all():
            page = int(offsets[0]) // mmap.PAGESIZE * mmap.PAGESIZE
            self._mapped().madvise(mmap.MADV_WILLNEED, page, int(offsets[-1]) - page)


def _existing(path: str | os.PathLike) -> str:
    """The path as a string. Raises RecordError if there is no such file, or another kind of file in its place."""
    if not os.path.isfile(path):
        raise RecordError(f"{path}: no such file; a record set needs a .rec and an .idx file; {WHERE_TO_GET}")
    if kind := describe_other_kind(path):
        raise RecordError(f"{path}: not a part of a record set, but {kind}")
    return str(path)


class RecordWriter:
    """Writes `stem`.rec and `stem`.idx. Both files appear, complete, only if the `with` block ends without an error."""

    def __init__(self, stem: str | os.PathLike) -> None:
        self._stem = Path(stem)
        self._keys: set[int] = set()
        self._stack = ExitStack()
        self._rec: BinaryIO | None = None
        self._idx: BinaryIO | None = None

    def __enter__(self) -> "RecordWriter":
        self._idx = self._stack.enter_context(atomic_write(self._stem.with_suffix(".idx")))
        self._rec = self._stack.enter_context(atomic_write(self._stem.with_suffix(".rec")))
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def write(self, key: int, label: float | list[float] | np.ndarray, image: bytes, id: int | None = None) -> None:
        """Append a record with one label (flag 0) or a list of labels (flag: their number). `id` defaults to the key.

        Raises RecordError for a key that was written before, or a record that is too long for the format.
        """
        if key in self._keys:
            raise RecordError(f"{self._stem}: key {key} was written before; each key may occur only once")
        self._keys.add(key)
        id = key if id is None else id
        if np.ndim(label):
            body = _HEADER.pack(len(label), 0.0, id, 0) + np.asarray(label, dtype="<f4").tobytes() + image
        else:
            body = _HEADER.pack(0, float(label), id, 0) + image
        if len(body) > _LENGTH_MASK:
            raise RecordError(
                f"{self._stem}: record {key} has {len(body)} bytes; the format allows at most {_LENGTH_MASK}"
            )
        self._idx.write(f"{key}\t{self._rec.tell()}\n".encode())
        parts = _split_at_magic(body)
        for number, part in enumerate(parts):
            part_flag = 0 if len(parts) == 1 else 1 if number == 0 else 3 if number == len(parts) - 1 else 2
            self._rec.write(_HEAD.pack(MAGIC, part_flag << 29 | len(part)) + part + bytes(-len(part) % 4))


def _split_at_magic(body: bytes) -> list[bytes]:
    """Cut `body` at each magic on a 4-byte boundary. The magic itself is dropped."""
    parts, start, position = [], 0, body.find(_MAGIC_BYTES)
    while position != -1:
        if position % 4 == 0:
            parts.append(body[start:position])
            start = position + 4
        position = body.find(_MAGIC_BYTES, position + (4 if position % 4 == 0 else 1))
    return [*parts, body[start:]]


def write_record_set(output: Path, encoded: Iterable[bytes], labels: np.ndarray, num_classes: int) -> None:
    """Write a training set in InsightFace's layout: train.rec, train.idx and property in the folder `output`.

    encoded: N encoded images. labels: integers [N], ascending, from 0 to num_classes - 1. The images are records 1 to
    N. After them comes one record per identity, which states the key range of its images. Record 0 states the key range
    of the records of identities.
    """
    make_writable_folder(output)
    end = len(labels) + 1
    first = np.searchsorted(labels, np.arange(num_classes), "left") + 1
    last = np.searchsorted(labels, np.arange(num_classes), "right") + 1
    with RecordWriter(output / "train") as writer:
        writer.write(0, [end, end + num_classes], b"")
        images = zip(labels, encoded, strict=True)
        for key, (label, image) in enumerate(tqdm(images, "writing images", len(labels), unit="image"), start=1):
            writer.write(key, float(label), image)
        for identity in range(num_classes):
            writer.write(end + identity, [first[identity], last[identity]], b"")
        write_text(output / "property", f"{num_classes},{SIZE},{SIZE}")
