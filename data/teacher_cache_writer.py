"""Write a file of teacher embeddings (data/teacher_cache.py) from all ranks, and resume after an interruption.

Until it is complete, `<name>.npy` is called `<name>.npy.part`. Beside it, `<name>.npy.done` has one byte per image,
which is 1 once the embeddings of the image are on the disk.
"""

import io
import json
import os
import shutil
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
from torch import Tensor

from data.teacher_cache import Description, EmbeddingError, description_path, read_description, require_same, shape_of
from utils.distributed import barrier, from_rank_0, on_rank_0
from utils.files import atomic_write, name_file, try_lock, write_text


class EmbeddingWriter:
    """Writes the file that `description` describes. All ranks write to it. An interrupted file is continued.

    remaining: int64, the positions of the images that have no embeddings yet, in ascending order. If the `with` block
    ends without an error, the file gets its final name. Embeddings written before an error or a kill are kept. Raises
    EmbeddingError.
    """

    def __init__(self, path: str | os.PathLike, description: Description) -> None:
        self.path = Path(path)
        self._part, self._done = (self.path.with_name(self.path.name + end) for end in (".part", ".done"))
        self._shape = shape_of(description)
        self._row, self._start = _row_size(self._shape), len(_header(self._shape))
        self._lock: BinaryIO | None = None  # on rank 0
        with name_file(self.path):
            on_rank_0(lambda: self._begin(description))
        self._files = [open(path, "r+b") for path in (self._part, self._done)]  # noqa: SIM115 - closed in __exit__
        done = np.frombuffer(from_rank_0(self._files[1].read()), dtype=np.uint8)
        self.remaining = np.flatnonzero(done == 0)
        self._unmarked: list[np.ndarray] = []
        self._marked_at = time.monotonic()

    def write(self, positions: np.ndarray, values: Tensor) -> None:
        """Write the embeddings [n, 2, D] of the images at `positions` [n], in ascending order.

        About once per second, the embeddings are flushed to the disk and then marked as done. Raises EmbeddingError for
        values that float16 cannot represent.
        """
        values = values.float().cpu()
        stored, length = values.half(), values.norm(dim=2)  # the relative rounding error of float16 is 2^-11
        is_exact = ((stored.float() - values).norm(dim=2) <= 1e-3 * length) & (length > 0)  # [n, 2]
        if not is_exact.all():
            raise EmbeddingError(
                f"{self.path}: the teacher's embedding of image {positions[int((~is_exact).nonzero()[0, 0])]} is not "
                "finite, or zero, or too large or too small for float16; are the weights those of a trained teacher?"
            )
        with name_file(self.path):
            for run in _runs(positions):
                self._files[0].seek(self._start + int(positions[run.start]) * self._row)
                self._files[0].write(stored[run].numpy().tobytes())
        self._unmarked.append(positions)
        if time.monotonic() - self._marked_at > 1:
            self._mark()

    def _mark(self) -> None:
        """Flush the embeddings to the disk, then mark their images as done."""
        embeddings, marks = self._files
        with name_file(self.path):
            _flush_to_disk(embeddings)
            for positions in self._unmarked:
                for run in _runs(positions):
                    marks.seek(int(positions[run.start]))
                    marks.write(b"\1" * (run.stop - run.start))
            _flush_to_disk(marks)
        self._unmarked = []
        self._marked_at = time.monotonic()

    def _begin(self, description: Description) -> None:
        """On rank 0: lock the file, and continue an interrupted one or create a new one."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part.touch()
        self._lock = open(self._part, "r+b")  # noqa: SIM115 - closed in __exit__
        try:
            self._claim()
            self._create_or_continue(description)
        except BaseException:
            self._lock.close()
            raise

    def _claim(self) -> None:
        """Lock the unfinished file until this process ends. Worker processes do not inherit the lock."""
        if (
            not try_lock(self._lock)
            or self.path.exists()
            or not self._part.exists()
            or not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._part))
        ):
            raise EmbeddingError(f"{self.path}: another process is writing it, or has just finished; start again")

    def _create_or_continue(self, description: Description) -> None:
        """Keep the files of an interrupted run if their sizes are right; else create new files.

        Raises EmbeddingError if the interrupted run had another description, or if the disk has too little space.
        """
        # read_description raises an error for a .json file of another kind, so that it is not overwritten.
        if description_path(self.path).is_file():
            earlier = read_description(self.path)
            shape = shape_of(earlier)
            if _size(self._done) == shape[0] and _size(self._part) == _file_size(shape):
                require_same(self._part, earlier, description)
                return
        size, free = _file_size(self._shape), shutil.disk_usage(self.path.parent).free
        if free < size:
            raise EmbeddingError(
                f"{self.path}: needs {size / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free; name a file on another disk"
            )
        write_text(description_path(self.path), json.dumps(description, indent=2, ensure_ascii=False))
        self._lock.truncate(0)
        self._lock.write(_header(self._shape))
        self._lock.truncate(size)
        self._lock.flush()
        with atomic_write(self._done) as file:
            file.write(bytes(self._shape[0]))

    def _finish(self) -> None:
        """On rank 0: give the complete file its final name."""
        missing = int((np.fromfile(self._done, dtype=np.uint8) == 0).sum())
        if missing:
            raise EmbeddingError(f"{self._part}: {missing} images have no embeddings; start again to embed them")
        os.replace(self._part, self.path)
        self._done.unlink()

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, error_type: type[BaseException] | None, *error: object) -> None:
        try:
            with suppress(OSError) if error_type else nullcontext():
                self._mark()
            if error_type is None:
                barrier()
                on_rank_0(self._finish)
        finally:
            for file in filter(None, [*self._files, self._lock]):
                with suppress(OSError):
                    file.close()


def _size(path: Path) -> int:
    """Size of a file in bytes; -1 if it does not exist."""
    return path.stat().st_size if path.is_file() else -1


def _header(shape: tuple[int, int, int]) -> bytes:
    """The header of an .npy file of float16 values."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _row_size(shape: tuple[int, int, int]) -> int:
    return 2 * shape[1] * shape[2]  # bytes per image


def _file_size(shape: tuple[int, int, int]) -> int:
    return len(_header(shape)) + shape[0] * _row_size(shape)


def _runs(positions: np.ndarray) -> list[slice]:
    """Cut ascending `positions` into slices of consecutive integers."""
    cuts = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(positions)], strict=True)]


def _flush_to_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
