"""Makes a file of embeddings (data/teacher_cache.py), by all ranks together, whole after any number of kills.

While it is being made, `<name>.npy` is called `<name>.npy.part`, and `<name>.npy.done` has a byte for each image: 1
where its embeddings are safely in it.
"""

import fcntl
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
from utils.files import atomic_write


class EmbeddingWriter:
    """Makes the file of `description`, by all ranks together, from where an earlier try was stopped.

    remaining: the positions, ascending, that have no embeddings yet. Leaving the `with` block without an error gives
    the file its name; what was written before an error or a kill is kept.
    """

    def __init__(self, path: str | os.PathLike, description: Description) -> None:
        self.path = Path(path)
        self._part, self._done = (self.path.with_name(self.path.name + end) for end in (".part", ".done"))
        self._shape = shape_of(description)
        self._row, self._start = _row_size(self._shape), len(_header(self._shape))
        self._lock: BinaryIO | None = None  # rank 0's
        on_rank_0(lambda: self._begin(description))
        self._files = [open(path, "r+b") for path in (self._part, self._done)]  # noqa: SIM115 - open as long as self
        done = np.frombuffer(from_rank_0(self._files[1].read()), dtype=np.uint8)
        self.remaining = np.flatnonzero(done == 0)
        self._unmarked: list[np.ndarray] = []
        self._marked_at = time.monotonic()

    def write(self, positions: np.ndarray, values: Tensor) -> None:
        """values [n, 2, D] of the images at `positions`, ascending. Raises EmbeddingError for what float16 cannot hold.

        At least every second what was written is put on the disk, and only then marked as done.
        """
        values = values.float().cpu()
        stored, length = values.half(), values.norm(dim=2)  # float16 rounds to a relative 2^-11 where it can
        held = ((stored.float() - values).norm(dim=2) <= 1e-3 * length) & (length > 0)  # [n, 2]
        if not held.all():
            raise EmbeddingError(
                f"{self.path}: the teacher's embedding of image {positions[int((~held).nonzero()[0, 0])]} is not "
                "finite, zero, or too large or small for float16; are these the weights of a trained teacher?"
            )
        for run in _runs(positions):
            self._files[0].seek(self._start + int(positions[run.start]) * self._row)
            self._files[0].write(stored[run].numpy().tobytes())
        self._unmarked.append(positions)
        if time.monotonic() - self._marked_at > 1:
            self._mark()

    def _mark(self) -> None:
        embeddings, marks = self._files
        _put_on_disk(embeddings)
        for positions in self._unmarked:
            for run in _runs(positions):
                marks.seek(int(positions[run.start]))
                marks.write(b"\1" * (run.stop - run.start))
        _put_on_disk(marks)
        self._unmarked = []
        self._marked_at = time.monotonic()

    def _begin(self, description: Description) -> None:
        """Rank 0's part: lock, and either hold what is there against the description or lay out new files."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._part.touch()
        self._lock = open(self._part, "r+b")  # noqa: SIM115 - held as long as self
        try:
            self._claim()
            self._lay_out(description)
        except BaseException:
            self._lock.close()
            raise

    def _claim(self) -> None:
        """Lock the part, by a lock that the loader's workers do not inherit: it ends with this process."""
        busy = EmbeddingError(f"{self.path}: another process is making it, or has just made it; start again")
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            raise busy from None
        except OSError:
            pass  # a file system without locks
        if (
            self.path.exists()
            or not self._part.exists()
            or not os.path.samestat(os.fstat(self._lock.fileno()), os.stat(self._part))
        ):
            raise busy

    def _lay_out(self, description: Description) -> None:
        """Hold what an earlier try left against the description; where that is not whole, begin anew."""
        if description_path(self.path).is_file():  # an error where it is of another kind: nobody's is overwritten
            found = read_description(self.path)
            if _size(self._done) == shape_of(found)[0] and _size(self._part) == _file_size(shape_of(found)):
                require_same(self._part, found, description)
                return
        size, free = _file_size(self._shape), shutil.disk_usage(self.path.parent).free
        if free < size:
            raise EmbeddingError(f"{self.path}: takes {size / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free")
        with atomic_write(description_path(self.path)) as file:
            file.write(json.dumps(description, indent=2).encode())
        self._lock.truncate(0)
        self._lock.write(_header(self._shape))
        self._lock.truncate(size)
        self._lock.flush()
        with atomic_write(self._done) as file:
            file.write(bytes(self._shape[0]))

    def _finish(self) -> None:
        """Rank 0's part: give the whole file its name."""
        missing = int((np.fromfile(self._done, dtype=np.uint8) == 0).sum())
        if missing:
            raise EmbeddingError(f"{self._part}: {missing} images were left out; start again to embed them")
        os.replace(self._part, self.path)
        self._done.unlink()

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: object) -> None:
        try:
            with suppress(OSError) if kind else nullcontext():
                self._mark()
            if kind is None:
                barrier()
                on_rank_0(self._finish)
        finally:
            for file in filter(None, [*self._files, self._lock]):
                with suppress(OSError):
                    file.close()


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _header(shape: tuple[int, int, int]) -> bytes:
    """How an .npy file of float16 begins."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f2", "fortran_order": False, "shape": shape})
    return header.getvalue()


def _row_size(shape: tuple[int, int, int]) -> int:
    return 2 * shape[1] * shape[2]  # bytes an image


def _file_size(shape: tuple[int, int, int]) -> int:
    return len(_header(shape)) + shape[0] * _row_size(shape)


def _runs(positions: np.ndarray) -> list[slice]:
    """Slices of ascending `positions` in which each is the one before plus one."""
    cuts = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(positions)], strict=True)]


def _put_on_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
