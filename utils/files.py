"""Atomic writes of files and folders, checksums, and locks of folders."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import BinaryIO

from utils.errors import InputError


@contextmanager
def name_file(path: str | os.PathLike, temporary: str | os.PathLike | None = None) -> Iterator[None]:
    """An OSError in this block names `path` if it named no file, as on a full disk, or the `temporary` file."""
    try:
        yield
    except OSError as error:
        if error.filename is None or error.filename == str(temporary):
            error.filename, error.filename2 = str(path), None
        raise


@contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """A binary file to write, which replaces `path` only when it is complete.

    It has a temporary name in the same folder. If the block ends without an error, the file is flushed to the disk and
    renamed; else it is deleted. An OSError names `path`.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with name_file(path, temporary):
            with open(temporary, "wb") as file:
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


def size_text(count: int) -> str:
    """A number of bytes as a short text, such as 3.072 kB or 11.92 GB."""
    power = min((len(str(count)) - 1) // 3, 4)
    return f"{count / 1000**power:.4g} {('B', 'kB', 'MB', 'GB', 'TB')[power]}"


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
        raise OSError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
    return path


@contextmanager
def new_folder(
    path: str | os.PathLike, maker: str, names: Sequence[str], is_ours: Callable[[Path], bool]
) -> Iterator[Path]:
    """A folder to fill, which gets the name `path` when the block ends without an error; else it is deleted.

    It replaces an empty folder, and a folder of which is_ours(path) is true and whose files all match a pattern in
    `names`. maker: the script that makes such folders, for messages. Raises InputError if `path` is anything else.
    """
    path = Path(os.path.abspath(path))
    if os.path.lexists(path):
        _require_replaceable(path, maker, names, is_ours)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("part", "old"))
    try:
        temporary.mkdir()
        yield temporary
        for file in temporary.iterdir():
            with open(file, "rb") as opened:
                os.fsync(opened.fileno())
        if path.exists():
            path.rename(old)
        temporary.rename(path)
    finally:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)


def _require_replaceable(path: Path, maker: str, names: Sequence[str], is_ours: Callable[[Path], bool]) -> None:
    if not path.is_dir() or path.is_symlink():
        raise InputError(f"{path}: exists and is no folder; name another one")
    files = sorted(file.name for file in path.iterdir())
    if others := [file for file in files if not any(fnmatchcase(file, name) for name in names)]:
        raise InputError(f"{path}: has other content ({', '.join(others[:3])}); name another folder")
    if files and not is_ours(path):
        raise InputError(f"{path}: {maker} did not make this folder; name another one")
