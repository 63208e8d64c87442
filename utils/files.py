"""Files that appear whole or not at all."""

import fcntl
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write, beside `path` until the block ends without an error, then flushed and renamed to it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike, text: str) -> None:
    """Write a file of text whole."""
    with atomic_write(path) as file:
        file.write(text.encode())


def sha256(path: str | os.PathLike) -> str:
    """The checksum of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def lock_folder(folder: str | os.PathLike) -> BinaryIO:
    """A lock on the folder for this process, for as long as the file that it gives is open; a kill lets go of it.

    Raises OSError where another process has it. Where the file system has no locks there is none.
    """
    path = Path(folder, ".lock")
    file = open(path, "ab")  # noqa: SIM115 - as long as the lock
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # children do not inherit it
    except (BlockingIOError, PermissionError) as error:
        file.close()
        raise OSError(f"{folder}: another run is writing there ({error.strerror}); end it, or name another") from error
    except OSError:
        pass
    return file


def make_writable_folder(path: str | os.PathLike) -> Path:
    """Make the folder if need be and try to write in it. Raises OSError with the path and what to do."""
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with atomic_write(path / ".writable") as file:
            file.write(b"")
        (path / ".writable").unlink()
    except OSError as error:
        raise OSError(f"{path}: cannot be written ({error.strerror}); set `output` to a folder of yours") from error
    return path
