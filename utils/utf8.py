"""Texts and names of files in UTF-8, whatever the locale is."""

import os
import sys


def use_utf8() -> None:
    """Start this script again in Python's UTF-8 mode if names of files are not in UTF-8 here.

    Libraries expect UTF-8: in the POSIX locale, TensorBoard, datasets and OpenCV cannot open a folder with an accent in
    its name. Characters that the encoding of the screen lacks are written as escapes.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    if sys.getfilesystemencoding() == "utf-8" or os.environ.get("PYTHONUTF8") == "1":
        return
    os.environ["PYTHONUTF8"] = "1"
    os.environ.setdefault("PYTHONIOENCODING", f"{sys.stdout.encoding}:backslashreplace")
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
