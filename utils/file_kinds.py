"""Recognise files of another kind where weights or data are expected: Git LFS pointers, web pages, archives."""

import os
import re
import zipfile

# Regular expression for the first bytes of a file -> what the file is and what to do.
_BEGINNINGS = {
    rb"version https://git-lfs\.github\.com/": (
        "a Git LFS pointer, which only names the file; run `git lfs pull` in its repository, or download the file"
    ),
    rb"(\xef\xbb\xbf)?\s*<(!doctype|html|head|\?xml)": (
        "a web page; download the file itself (the link may lead to a page about it, or need a login)"
    ),
    rb"\x1f\x8b|7z\xbc\xaf\x27\x1c|Rar!|BZh|\xfd7zXZ|.{257}ustar": "a packed archive; unpack it",
    rb"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes it; use weights that PyTorch saved",
    rb".{4}TFL3": "a TensorFlow Lite model; use weights that PyTorch saved",
    rb"\x08[\x01-\x20]\x12.[ -~]{3}": "an ONNX model; use weights that PyTorch saved",
    rb"\x12\x01\0\0\0\0\0\0": "a parameter file of MXNet; use weights that PyTorch saved",
}
_TORCHSCRIPT = (
    "a TorchScript archive, which is a program; if you trust it, save its weights with "
    "`torch.save(torch.jit.load(FILE).state_dict(), NEW_FILE)`"
)


def describe_other_kind(path: str | os.PathLike, torch_file: bool = False) -> str | None:
    """What a file is and what to do, if it is neither a pickle nor a weights file; else None. Executes nothing.

    torch_file: whether a file that torch.save wrote is expected; if not, that is described too.
    """
    with open(path, "rb") as file:
        beginning = file.read(512)
    if not beginning:
        return "an empty file; download or copy it again"
    for pattern, kind in _BEGINNINGS.items():
        if re.match(pattern, beginning, re.IGNORECASE | re.DOTALL):
            return kind
    if not zipfile.is_zipfile(path):
        return None
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.rpartition("/")[2] for name in archive.namelist()}
    except Exception:  # a broken archive raises nearly any exception; its reader says what is wrong with it
        return None
    if "constants.pkl" in names:
        return _TORCHSCRIPT
    if "data.pkl" in names:
        return None if torch_file else "a file that torch.save wrote, such as weights; name another file"
    return "a zip archive; unpack it"
