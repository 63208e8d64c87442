"""Embeddings of a whole training set in one file: float16 [images, 2, D], of each image and of its mirror image.

`<name>.npy` is mapped into memory; `<name>.json` says what the embeddings are of. While it is being made, the file is
called `<name>.npy.part`, and `<name>.npy.done` has a byte for each image: 1 where its embeddings are safely in it.
"""

import fcntl
import io
import json
import os
import shutil
import time
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from utils.distributed import barrier, from_rank_0, on_rank_0
from utils.errors import InputError
from utils.files import written_whole

# What the embeddings are of, in sections; all but "about" must agree for a file to be used.
Description = dict[str, dict[str, Any]]


class EmbeddingError(InputError):
    """A file of embeddings that is broken, or not of what is asked for; the message names file and difference."""


class EmbeddingFile:
    """A finished file, which must be of `wanted`, as far as that says. Raises EmbeddingError."""

    def __init__(self, path: str | os.PathLike, wanted: Description) -> None:
        self.path = Path(path)
        self.description = _read_description(self.path)
        _require_same(self.path, self.description, wanted)
        stored, shape = self._open(), _shape(self.description)
        if stored.dtype != np.float16 or stored.shape != shape:
            raise EmbeddingError(
                f"{self.path}: holds {stored.dtype} {list(stored.shape)} where its description says float16 "
                f"{list(shape)}; remove both and make it anew"
            )
        self._stored: np.ndarray | None = None

    def summary(self) -> str:
        """A line: whose embeddings, of what, how large."""
        about, teacher = self.description.get("about", {}), self.description["teacher"]
        return (
            f"{teacher['network']} from {about.get('teacher')}, weights sha256 {teacher['sha256'][:12]}, by its "
            f"embeddings of {about.get('data')} in {self.path} ({self.path.stat().st_size / 1e9:.2f} GB)"
        )

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        """float16 [B, D]: of each image, or of its mirror image where `flips`."""
        if self._stored is None:  # once a process
            self._stored = self._open()
        return torch.from_numpy(self._stored[positions, flips.astype(np.intp)])

    def _open(self) -> np.ndarray:
        try:
            return np.load(self.path, mmap_mode="r")
        except (ValueError, EOFError) as error:
            raise EmbeddingError(f"{self.path}: broken or cut short ({error}); remove it and make it anew") from error

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_stored": None}


class EmbeddingWriter:
    """Makes the file of `description`, by all ranks together, from where an earlier try was stopped.

    remaining: the positions, ascending, that have no embeddings yet. Leaving the `with` block without an error gives
    the file its name; what was written before an error or a kill is kept.
    """

    def __init__(self, path: str | os.PathLike, description: Description) -> None:
        self.path = Path(path)
        self._part, self._done = (self.path.with_name(self.path.name + end) for end in (".part", ".done"))
        self._shape = _shape(description)
        self._row = 2 * self._shape[1] * self._shape[2]  # bytes an image
        self._lock: BinaryIO | None = None  # rank 0's
        on_rank_0(lambda: self._begin(description))
        self._files = [open(path, "r+b") for path in (self._part, self._done)]  # noqa: SIM115 - open as long as self
        self._start = os.path.getsize(self._part) - self._shape[0] * self._row
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
        size = self._shape[0] * self._row
        layout = {"descr": "<f2", "fortran_order": False, "shape": self._shape}
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, layout)
        if (
            _description_path(self.path).is_file()
            and _size(self._done) == _shape(_read_description(self.path))[0]
            and _size(self._part) > size // 2  # of another shape: a difference to be named
        ):
            _require_same(self._part, _read_description(self.path), description)
            if _size(self._part) == len(header.getvalue()) + size:
                return
        free = shutil.disk_usage(self.path.parent).free
        if free < size:
            raise EmbeddingError(f"{self.path}: takes {size / 1e9:.1f} GB, and there are {free / 1e9:.1f} GB free")
        if _description_path(self.path).exists():
            _read_description(self.path)  # nobody's file of another kind is overwritten
        with written_whole(_description_path(self.path)) as file:
            file.write(json.dumps(description, indent=2).encode())
        self._lock.truncate(0)
        self._lock.write(header.getvalue())
        self._lock.truncate(len(header.getvalue()) + size)
        self._lock.flush()
        with written_whole(self._done) as file:
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


def _require_same(path: Path, found: Description, wanted: Description) -> None:
    differences = [
        f"{section}.{name} is {found.get(section, {}).get(name)!r}, not {value!r}"
        for section, values in wanted.items()
        if section != "about"
        for name, value in values.items()
        if found.get(section, {}).get(name) != value
    ]
    if differences:
        raise EmbeddingError(
            f"{path}: embeddings of something else: {'; '.join(differences)}. Set teacher_embeddings to another file, "
            "or remove this one to have it made anew"
        )


def _description_path(path: Path) -> Path:
    return path.with_suffix(".json")


def _read_description(path: Path) -> Description:
    try:
        description = json.loads(_description_path(path).read_text())
        _shape(description)
    except FileNotFoundError:
        raise EmbeddingError(f"{_description_path(path)}: missing; it says what {path} holds") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EmbeddingError(f"{_description_path(path)}: no description of embeddings; make them anew") from error
    return description


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else -1


def _shape(description: Description) -> tuple[int, int, int]:
    """(images, views, dimensions)."""
    images, views, dimensions = description["embeddings"]["shape"]
    return int(images), int(views), int(dimensions)


def _runs(positions: np.ndarray) -> list[slice]:
    """Slices of ascending `positions` in which each is the one before plus one."""
    cuts = (np.flatnonzero(np.diff(positions) != 1) + 1).tolist()
    return [slice(start, stop) for start, stop in zip([0, *cuts], [*cuts, len(positions)], strict=True)]


def _put_on_disk(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
