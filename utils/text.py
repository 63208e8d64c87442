"""Read text files that were written on any system: UTF-8, or UTF-16 with a byte order mark."""

import codecs
import os
from pathlib import Path

from utils.errors import InputError

_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path: str | os.PathLike) -> bytes:
    """The contents of a text file, in UTF-8 and without a byte order mark.

    Other bytes are kept as they are, because the name of a file may consist of any bytes. Raises InputError for UTF-16
    that cannot be decoded, or that has no byte order mark.
    """
    data = Path(path).read_bytes()
    if data.startswith(_UTF16_MARKS):
        try:
            return data.decode("utf-16").encode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{path}: broken UTF-16 ({error.reason} at byte {error.start}); save it as UTF-8"
            ) from None
    if b"\0" in data:
        line = data.count(b"\n", 0, data.index(b"\0")) + 1
        raise InputError(
            f"{path}: line {line} has a zero byte, so it is not UTF-8; convert the file, for example with "
            f"`iconv -f UTF-16{'BE' if data.index(0) % 2 == 0 else 'LE'} -t UTF-8 {path} > NEW`"
        )
    return data.removeprefix(codecs.BOM_UTF8)


def needs_conversion(path: str | os.PathLike) -> bool:
    """Whether `read_text` changes the contents of a text file, or refuses them. Only its start is read."""
    with open(path, "rb") as file:
        start = file.read(4)
    return start.startswith((codecs.BOM_UTF8, *_UTF16_MARKS)) or b"\0" in start
