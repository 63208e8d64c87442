"""Write a file of teacher embeddings (data/teacher_cache.py) from all ranks, and resume after an interruption.

Until it is complete, `<name>.npy` is called `<name>.npy.part`. Beside it, each rank appends to `<name>.npy.done.<rank>`
which images have their embeddings on the disk: the first position and the one after the last, two int64 each time.
`<name>.npy.done` has the same for all earlier attempts.

The ranks may be on several machines that share a file system such as NFS. There a machine may write back a whole page
of which it changed a part, with old content in the rest. So no two ranks write into the same page: each has its own
part of the file, between two multiples of PAGE.
"""

import io
import json
import math
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from data.teacher_cache import (
    Description,
    EmbeddingError,
    description_path,
    encode,
    read_description,
    require_same,
    row_type,
    shape_of,
)
from utils.distributed import on_rank_0, rank, sum_over_ranks, world_size
from utils.files import atomic_write, name_file, try_lock, write_text

PAGE = 4096  # bytes; NumPy reads headers of up to 10,000 bytes


class Batches(Sampler[np.ndarray]):
    """Yields the positions, int64 [n], in `ranges` [m, 2], in batches of at most `size` from one range."""

    def __init__(self, ranges: np.ndarray, size: int) -> None:
        self._ranges, self._size = ranges, size

    def __len__(self) -> int:
        return int((-(-np.diff(self._ranges) // self._size)).sum())

    def __iter__(self) -> Iterator[np.ndarray]:
        for start, stop in self._ranges.tolist():
            for first in range(start, stop, self._size):
                yield np.arange(first, min(first + self._size, stop))


class EmbeddingWriter:
    """Writes the file that `description` describes. All ranks write to it. An interrupted file is continued.

    remaining: int64 [n, 2], the ranges of images (first, last + 1) that have no embeddings yet, in ascending order;
    share: those that this rank has to write. If the `with` block ends without an error, the file gets its final name.
    Embeddings written before an error or a kill are kept. Raises EmbeddingError.
    """

    def __init__(self, path: str | os.PathLike, description: Description) -> None:
        self.path = Path(path)
        self._part, self._done = (self.path.with_name(self.path.name + end) for end in (".part", ".done"))
        self._shape, self._row = shape_of(description), row_type(description)
        self._lock: BinaryIO | None = None  # on rank 0
        with name_file(self.path):
            self.remaining = on_rank_0(lambda: self._begin(description))
            self.share = share_of_rank(self.remaining, self._shape[0], 2 * self._row.itemsize)
            self._file = open(self._part, "r+b")  # noqa: SIM115 - closed in __exit__
            self._marks = open(f"{self._done}.{rank()}", "ab")  # noqa: SIM115 - closed in __exit__
        self._unmarked: list[list[int]] = []  # ranges
        self._written = 0
        self._marked_at = time.monotonic()

    def write(self, first: int, values: Tensor) -> None:
        """Write the embeddings [n, 2, D] of the images from position `first` on.

        About once per second, the embeddings are flushed to the disk and then marked as done. Raises EmbeddingError for
        values that float16 cannot represent.
        """
        values = values.float().cpu()
        rounded, length = values.half(), values.norm(dim=2)  # the relative rounding error of float16 is 2^-11
        is_exact = ((rounded.float() - values).norm(dim=2) <= 1e-3 * length) & (length > 0)  # [n, 2]
        if not is_exact.all():
            raise EmbeddingError(
                f"{self.path}: the teacher's embedding of image {first + int((~is_exact).nonzero()[0, 0])} is not "
                "finite, or zero, or too large or too small for float16; are the weights those of a trained teacher?"
            )
        with name_file(self.path):
            self._file.seek(PAGE + first * 2 * self._row.itemsize)
            self._file.write(encode(values, self._row).tobytes())
        if self._unmarked and self._unmarked[-1][1] == first:
            self._unmarked[-1][1] += len(values)
        else:
            self._unmarked.append([first, first + len(values)])
        self._written += len(values)
        if time.monotonic() - self._marked_at > 1:
            self._mark()

    def _mark(self) -> None:
        """Flush the embeddings to the disk, then mark their images as done."""
        with name_file(self.path):
            _flush_to_disk(self._file)
            self._marks.write(np.array(self._unmarked, np.int64).tobytes())
            _flush_to_disk(self._marks)
        self._unmarked = []
        self._marked_at = time.monotonic()

    def _begin(self, description: Description) -> np.ndarray:
        """On rank 0: lock the file, and continue an interrupted one or create a new one. Returns `remaining`."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part.touch()
        self._lock = open(self._part, "r+b")  # noqa: SIM115 - closed in __exit__
        try:
            self._claim()
            if self._can_continue(description):
                done = [np.fromfile(path, np.int64) for path in self._progress()]
                done = np.concatenate([ranges[: len(ranges) // 2 * 2] for ranges in done]).reshape(-1, 2)
            else:
                self._create(description)
                done = np.empty((0, 2), np.int64)
            remaining = gaps(done, self._shape[0])
            with atomic_write(self._done) as file:
                file.write(gaps(remaining, self._shape[0]).tobytes())
            self._remove_progress(but=self._done)
        except BaseException:
            self._lock.close()
            raise
        return remaining

    def _claim(self) -> None:
        """Lock the unfinished file until this process ends. Worker processes do not inherit the lock."""
        if (
            not try_lock(self._lock)
            or self.path.exists()
            or not self._part.exists()
            or not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._part))
        ):
            raise EmbeddingError(f"{self.path}: another process is writing it, or has just finished; start again")

    def _can_continue(self, description: Description) -> bool:
        """Whether there are files of an interrupted run with the right sizes. Raises EmbeddingError if that run had
        another description."""
        # read_description raises an error for a .json file of another kind, so that it is not overwritten.
        if not description_path(self.path).is_file():
            return False
        earlier = read_description(self.path)
        if not self._done.is_file() or self._part.stat().st_size != _file_size(earlier):
            return False
        require_same(self._part, earlier, description)
        return True

    def _create(self, description: Description) -> None:
        """Create a file without embeddings. Raises EmbeddingError if the disk has too little space."""
        size, free = _file_size(description), shutil.disk_usage(self.path.parent).free
        if free < size:
            raise EmbeddingError(
                f"{self.path}: needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; name a file on another disk"
            )
        self._remove_progress()
        write_text(description_path(self.path), json.dumps(description, indent=2, ensure_ascii=False))
        self._lock.truncate(0)
        self._lock.write(_header(self._shape, self._row))
        self._lock.truncate(size)
        _flush_to_disk(self._lock)

    def _progress(self) -> list[Path]:
        """The files that state which images are done."""
        return [path for path in self.path.parent.iterdir() if path.name.startswith(self._done.name)]

    def _remove_progress(self, but: Path | None = None) -> None:
        for path in self._progress():
            if path != but:
                path.unlink()

    def _finish(self, written: int) -> None:
        """On rank 0: give the complete file its final name. written: the number of images, of all ranks."""
        missing = int(np.diff(self.remaining).sum()) - written
        if missing:
            raise EmbeddingError(f"{self._part}: {missing} images have no embeddings; start again to embed them")
        os.replace(self._part, self.path)
        self._remove_progress()

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        try:
            with suppress(OSError) if error_type else nullcontext():
                self._mark()
            if error_type is None:
                written = torch.tensor(self._written)
                sum_over_ranks(written)
                on_rank_0(lambda: self._finish(int(written)))
        finally:
            for file in filter(None, [self._file, self._marks, self._lock]):
                with suppress(OSError):
                    file.close()


def share_of_rank(remaining: np.ndarray, images: int, size: int) -> np.ndarray:
    """The part of the ranges `remaining` [n, 2] that this rank writes, about as many images as every other rank.

    size: bytes per image. The parts of two ranks have no page of the file in common.
    """
    if not len(remaining):
        return remaining
    lengths = np.diff(remaining).ravel()
    before = np.cumsum(lengths) - lengths  # how many images the earlier ranges have
    images_per_page = PAGE // math.gcd(PAGE, size)  # images that fill whole pages

    def boundary(of_rank: int) -> int:
        """Where the share of a rank begins."""
        if of_rank == world_size():
            return images
        wanted = lengths.sum() * of_rank // world_size()
        number = np.searchsorted(before, wanted, side="right") - 1
        position = int(remaining[number, 0] + wanted - before[number])
        return position // images_per_page * images_per_page

    share = remaining.clip(boundary(rank()), boundary(rank() + 1))
    return share[share[:, 0] < share[:, 1]]


def gaps(ranges: np.ndarray, images: int) -> np.ndarray:
    """The ranges of the images 0 to images - 1 that lie in none of `ranges` [n, 2], in ascending order."""
    ranges = ranges[np.argsort(ranges[:, 0])]
    starts = np.maximum.accumulate(np.append(0, ranges[:, 1]))
    between = np.stack([starts, np.append(ranges[:, 0], images)], 1)
    return between[between[:, 0] < between[:, 1]]


def _header(shape: tuple[int, int, int], row: np.dtype) -> bytes:
    """The header of the .npy file, with the length PAGE."""
    file = io.BytesIO()
    described = {"descr": np.lib.format.dtype_to_descr(row.base), "fortran_order": False}
    np.lib.format.write_array_header_1_0(file, {**described, "shape": (*shape[:2], *row.shape)})
    header = file.getvalue()  # 8 bytes, the length of the rest as two bytes, a dict as text, spaces and a newline
    return header[:8] + (PAGE - 10).to_bytes(2, "little") + header[10:].rstrip().ljust(PAGE - 11) + b"\n"


def _file_size(description: Description) -> int:
    return PAGE + shape_of(description)[0] * 2 * row_type(description).itemsize


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
