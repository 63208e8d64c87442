"""Recognise files of another kind where weights or data are expected: Git LFS pointers, web pages, archives."""

import os
import re
import zipfile

# Regular expression for the first bytes of a file -> what the file is and what to do.
_PLACEHOLDERS = {
    rb"version https://git-lfs\.github\.com/": (
        "a Git LFS pointer, which only names the file; run `git lfs pull` in its repository, or download the file"
    ),
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)": (
        "a web page; download the file itself (the link may lead to a page about it, or need a login)"
    ),
    rb"\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!|BZh|\xfd7zXZ|.{257}ustar": "an archive; extract it",
}
# Regular expression for the first bytes of a file -> which model it holds.
_MODELS = {
    rb"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it",
    rb".{4}TFL3": "a TensorFlow Lite model",
    rb"\x08[\x01-\x20]\x12.[ -~]{3}": "an ONNX model",
    rb"\x12\x01\0\0\0\0\0\0": "a parameter file of MXNet",
}
_SAVE_WEIGHTS = "if you trust it, save its weights with `torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)`"


def describe_other_kind(path: str | os.PathLike, torch_file: bool = False) -> str | None:
    """If this repository cannot read files of this kind: what the file is and what to do. Otherwise None.

    torch_file: whether a file that torch.save writes is expected; if not, such a file is described too. Nothing in the
    file is executed.
    """
    with open(path, "rb") as file:
        beginning = file.read(512)
    if not beginning:
        return "an empty file; download or copy it again"

    def find(kinds: dict[bytes, str]) -> str | None:
        matches = (text for pattern, text in kinds.items() if re.match(pattern, beginning, re.IGNORECASE | re.DOTALL))
        return next(matches, None)

    if placeholder := find(_PLACEHOLDERS):
        return placeholder
    if model := find(_MODELS):
        return f"{model}; {'use weights that PyTorch saved' if torch_file else 'name another file'}"
    names = _names_in_zip(path)
    if "constants.pkl" in names:
        return f"a TorchScript archive, which is a program; {_SAVE_WEIGHTS if torch_file else 'name another file'}"
    if "data.pkl" in names:
        return None if torch_file else "a file that torch.save wrote, such as weights; name another file"
    return "a zip archive; extract it" if names else None


def _names_in_zip(path: str | os.PathLike) -> set[str]:
    """The names of the files in a zip archive, without folders. Empty for a file that is not one, or a broken one."""
    try:
        if not zipfile.is_zipfile(path):
            return set()
        with zipfile.ZipFile(path) as archive:
            return {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # a broken archive raises nearly any exception; its reader says what is wrong with it
        return set()
