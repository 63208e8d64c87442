"""Where paths start, and how their text becomes a path on this machine."""

import os
import re
import sys
from functools import cache
from pathlib import Path

from utils.errors import InputError

ROOT = Path(__file__).resolve().parent.parent
HUB = "hf://"  # what the name of a repository on the Hugging Face hub begins with


class PathError(InputError):
    """A text that cannot be a path on this machine. The message names it and says what to do."""


def is_repository(text: str | os.PathLike) -> bool:
    """Whether a text names a repository on the Hugging Face hub instead of a path."""
    return os.fspath(text).startswith(HUB)


def split_repository(text: str) -> tuple[str, str]:
    """(owner/name, revision) of hf://owner/name or hf://owner/name@revision; the revision is main if none is named.

    Raises PathError for any other text.
    """
    found = re.fullmatch(rf"{HUB}([\w.-]+/[\w.-]+)(?:@([^@\s]+))?", text)
    if found is None:
        raise PathError(f"{text}: not the name of a repository; write {HUB}owner/name, or {HUB}owner/name@revision")
    return found[1], found[2] or "main"


def input_path(text: str | os.PathLike) -> Path:
    """The absolute path of a file or folder to read.

    A relative path is looked for in the current folder, then in the repository root. If it exists in both places, a
    line on standard error says that the one in the current folder is used. If neither exists, the path in the
    repository is returned. Raises PathError.
    """
    path = Path(_expand(text))
    if path.is_absolute():
        return path
    here, in_repository = Path.cwd() / path, ROOT / path
    if not _exists(here):
        return in_repository
    if _exists(in_repository) and not here.samefile(in_repository) and os.environ.get("RANK", "0") == "0":
        _say_once(f"{text}: using {here}, not {in_repository}; write an absolute path to choose")
    return here


def existing_input(text: str | os.PathLike, hint: str = "") -> Path:
    """The absolute path of a file or folder to read, as `input_path` finds it. Raises PathError if it does not exist.

    hint: follows in the message.
    """
    found = input_path(text)
    if not _exists(found):
        path = Path(_expand(text))
        places = [str(path)] if path.is_absolute() else dict.fromkeys([str(Path.cwd() / path), str(found)])
        raise PathError(f"{text}: no such file or folder; looked for {' and '.join(places)}{hint and f'; {hint}'}")
    return found


def existing_weights(text: str) -> None:
    """Raise PathError unless the text names a repository, or a file or folder that exists."""
    if is_repository(text):
        split_repository(text)
    else:
        existing_input(text, f"a repository of the Hugging Face hub is {HUB}owner/name")


def output_path(text: str | os.PathLike) -> Path:
    """The absolute path of a file or folder to write. A relative path starts at the repository root. Raises
    PathError."""
    return ROOT / _expand(text)


@cache
def _say_once(text: str) -> None:
    print(text, file=sys.stderr)


def _exists(path: Path) -> bool:
    """Whether the path exists. A path that this process may not look at counts as existing."""
    try:
        os.stat(path)
    except PermissionError:
        return True
    except OSError:
        return False
    return True


def _expand(text: str | os.PathLike) -> str:
    """The path with `~` and $VARIABLES replaced."""
    text = os.fspath(text)
    try:
        expanded = os.path.expanduser(os.path.expandvars(text))
    except ValueError:  # the user name after ~ contains a null character
        expanded = "\0"
    if "\0" in expanded:
        raise PathError(f"{text!r}: not a path; it contains a character that no path can have")
    if "$" in expanded:
        raise PathError(f"{text!r}: the environment variable in it is not set; set it, or write out the path")
    return expanded
