"""Atomic writes, checksums and locks of folders."""

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import BinaryIO

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # of the disk, of the user's quota, of the largest file allowed


@contextmanager
def name_full_disk(path: str | os.PathLike) -> Iterator[None]:
    """Add `path` to an OSError that says that the disk is full, because errors of `write` and `flush` name no file."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL or error.filename is not None:
            raise
        raise OSError(error.errno, f"{error.strerror} (free disk space)", str(path)) from error


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` only when it is complete.

    It has a temporary name in the same folder. If the block ends without an error, the file is flushed to the disk and
    renamed; else it is deleted. If the disk is full, the OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with name_full_disk(path), open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a text file in UTF-8 with `atomic_write`."""
    with atomic_write(path) as file:
        file.write(text.encode())


def checksum(parts: Iterable[bytes | memoryview]) -> str:
    """The SHA-256 of the joined parts, in hexadecimal digits."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def sha256(path: str | os.PathLike) -> str:
    """The SHA-256 of a file, in hexadecimal digits."""
    with open(path, "rb") as file:
        return checksum(iter(partial(file.read, 1 << 20), b""))


def lock_folder(folder: str | os.PathLike) -> BinaryIO:
    """Lock a folder for this process until the returned file is closed or the process ends.

    Raises OSError if another process has the lock. On a file system without locks, it has no effect.
    """
    file = open(Path(folder, ".lock"), "ab")  # noqa: SIM115 - open while the lock is held
    if not try_lock(file):
        file.close()
        raise OSError(f"{folder}: another run is writing there; end it or choose another folder")
    return file


def try_lock(file: BinaryIO) -> bool:
    """Lock a file for this process until it is closed or the process ends. Child processes do not inherit the lock.

    Returns False if another process has the lock, and True without a lock on a file system that has none.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    except OSError:
        pass
    return True


def make_writable_folder(path: str | os.PathLike) -> Path:
    """Create the folder if it does not exist and check that files can be written in it. Raises OSError."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / ".writable") as file:
            file.write(b"")
        (path / ".writable").unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror}); set `output` to another folder") from error
    return path
