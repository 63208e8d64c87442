"""Errors that users can mend, and how a script ends on them."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from utils.utf8 import use_utf8

# What to do about an error of the operating system.
_ADVICE = {
    errno.ENOENT: "check the path",
    errno.EACCES: "check the permissions",
    errno.EPERM: "check the permissions",
    errno.EROFS: "choose a folder that can be written",
    errno.ENOSPC: "free disk space",
    errno.EFBIG: "free disk space, or raise the limit of the size of files (ulimit -f)",
    errno.EDQUOT: "free disk space, or raise the quota",
    errno.EISDIR: "name a file, not a folder",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.EIO: "check the disk",
}


class InputError(ValueError):
    """A file or a setting cannot be used. The message names it and says what was expected and what to do."""


class WorkerError(RuntimeError):
    """The worker processes of this process were killed, failed or are stuck. Not an InputError: it ends the run."""


def describe_error(error: Exception) -> str:
    """The message of an error, for users. An error of the operating system: the file, what happened, what to do."""
    if isinstance(error, UnicodeEncodeError):
        return f"{error.object[:200]!r}: the name of a file or folder that is not valid UTF-8; rename it"
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    parts = [f"{error.filename}: " if error.filename else "", error.strerror.lower()]
    advice = _ADVICE.get(error.errno)
    return "".join(parts) + (f"; {advice}" if advice else "")


@contextmanager
def exit_on_input_error() -> Iterator[None]:
    """For the main part of a script: InputError and OSError end it with one line and exit code 2, Ctrl-C with 130.

    WorkerError ends it too, and UnicodeEncodeError, which comes from names of files that are not valid UTF-8.
    """
    use_utf8()
    try:
        yield
    except (InputError, WorkerError, OSError, UnicodeEncodeError) as error:
        rank = os.environ.get("RANK")
        message = f"error{'' if rank is None else f' (rank {rank})'}: {describe_error(error)}"
        print(message, file=sys.stderr, flush=True)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None
