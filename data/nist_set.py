"""IJB-B and IJB-C as NIST and InsightFace distribute them: loosely cropped photos, and lists in plain text."""

import io
import os
import warnings
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from data.alignment import similarity_to_arcface, warp
from data.images import decode_rgb
from utils.errors import InputError
from utils.text import needs_conversion, read_text

PREFIXES = ("ijbb", "ijbc")
LISTS = {  # the files in meta/: the fields of a line, and their description in error messages
    "face_tid_mid": (
        [("file", "S"), ("template", np.int64), ("medium", np.int64)],
        "a file name, its template and its medium as integers",
    ),
    "name_5pts_score": (
        [("file", "S"), ("points", np.float64, (5, 2)), ("score", np.float64)],
        "a file name, x and y of five points, the score of the detector",
    ),
    "template_pair_label": (
        [("p1", np.int32), ("p2", np.int32), ("label", np.int32)],
        "two templates and a label as integers",
    ),
}
MAX_NAME = 255  # bytes of a file name on common file systems
_CHUNK = 4096  # lines that are read at a time in the search for the first line that cannot be read
# NumPy gives a DeprecationWarning for a fraction in place of an integer.
_UNREADABLE = (ValueError, DeprecationWarning)


class NistSetError(InputError):
    """An IJB folder that is incomplete, broken or inconsistent. The message names file and line and says what to do."""


def is_nist(path: str | os.PathLike) -> bool:
    """Whether a folder has this layout, and not the one of data/arrow_set.py."""
    return any(Path(path, folder).is_dir() for folder in ("meta", "loose_crop"))


class NistSet(torch.utils.data.Dataset):
    """N photos in the order of face_tid_mid. `images[positions]` returns n aligned faces, uint8 [n, 112, 112, 3] RGB.

    metadata: for each photo faceness_scores (of the detector), float64 [N], and templates and medias, int64 [N]; for
    each pair of templates p1 and p2 (template ids) and label (1 genuine, 0 impostor), int32 [P]. All photos must exist,
    but each is read only when it is used. Raises InputError.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(path)
        paths = _find_lists(self.path)
        faces_list, points_list, pairs_list = paths
        faces, scored, pairs = (_read(path, *LISTS[name]) for path, name in zip(paths, LISTS, strict=True))
        transforms = similarity_to_arcface(scored["points"])
        usable = np.isfinite(transforms).all((1, 2)) & np.isfinite(scored["score"])
        _require(points_list, usable, "finite numbers, and points that differ")
        _require(pairs_list, (pairs["label"] == 0) | (pairs["label"] == 1), "the label 0 (impostor) or 1 (genuine)")
        rows = _match(faces_list, faces["file"], points_list, scored["file"])
        _require_photos(Path(self.path, "loose_crop"), faces["file"])
        self._files, self._transforms = faces["file"].copy(), transforms[rows]
        self.metadata: dict[str, np.ndarray] = {
            "faceness_scores": scored["score"][rows],
            "templates": faces["template"].copy(),
            "medias": faces["medium"].copy(),
            **{name: pairs[name].copy() for name in ("label", "p1", "p2")},
        }

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        return torch.from_numpy(np.stack([self._image(int(position)) for position in positions]))

    def _image(self, position: int) -> np.ndarray:
        path = Path(self.path, "loose_crop", os.fsdecode(self._files[position]))
        try:
            encoded = path.read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise NistSetError(f"{path}: listed in meta, but cannot be read ({reason}); fetch it again") from error
        return warp(decode_rgb(encoded, str(path)), self._transforms[position])


def _find_lists(path: str) -> list[Path]:
    """The paths of the three LISTS, in this order, of IJB-B or of IJB-C. Raises NistSetError."""
    files = {prefix: [Path(path, "meta", f"{prefix}_{name}.txt") for name in LISTS] for prefix in PREFIXES}
    present = [prefix for prefix in PREFIXES if any(file.exists() for file in files[prefix])]
    if len(present) != 1:
        raise NistSetError(
            f"{path}: meta has the lists of {' and '.join(present) or 'no set'}; it must have those of one set: "
            f"{', '.join(f'PREFIX_{name}.txt' for name in LISTS)}, where PREFIX is {' or '.join(PREFIXES)}"
        )
    missing = [str(file) for file in files[present[0]] if not file.is_file()]
    if not Path(path, "loose_crop").is_dir():
        missing.append(str(Path(path, "loose_crop")))
    if missing:
        raise NistSetError(f"{path}: incomplete, {' and '.join(missing)} missing; fetch the whole folder")
    return files[present[0]]


def _read(path: Path, fields: list[tuple], expected: str) -> np.ndarray:
    """The lines of a list as a structured array [lines]. File names become bytes, as long as the longest name."""
    if fields[0] == ("file", "S"):
        fields = [("file", f"S{_longest_name(path, expected)}"), *fields[1:]]
    dtype = np.dtype(fields)
    try:
        table = _load(_lines(path) if needs_conversion(path) else path, dtype)
    except _UNREADABLE:
        raise _bad_line(path, *_first_unreadable(path, dtype), expected) from None
    if not len(table):
        raise NistSetError(f"{path}: empty (each line must have {expected}); fetch it again")
    return table


def _longest_name(path: Path, expected: str) -> int:
    """The length of the longest file name, in bytes. Raises NistSetError for a name of more than MAX_NAME bytes.

    Each name takes this much memory, so a single long name could fill it.
    """
    longest = 1
    for number, line in enumerate(_lines(path), 1):
        words = line.split(None, 1)
        if words and len(words[0]) > longest:
            longest = len(words[0])
            if longest > MAX_NAME:
                raise _bad_line(path, number, line, f"{expected}; the name has at most {MAX_NAME} bytes")
    return longest


def _lines(path: Path) -> Iterable[str]:
    """The lines of a list in UTF-8, one character per byte (latin1)."""
    return io.TextIOWrapper(io.BytesIO(read_text(path)), encoding="latin1")


def _load(lines: Path | Iterable[str], dtype: np.dtype) -> np.ndarray:
    """Read lines with NumPy. For 15.7 million lines it is faster than pandas and takes half the memory.

    Raises one of _UNREADABLE.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # for empty lines and files
        warnings.simplefilter("error", DeprecationWarning)
        # latin1 keeps bytes unchanged.
        return np.loadtxt(lines, dtype, comments=None, ndmin=1, encoding="latin1")


def _first_unreadable(path: Path, dtype: np.dtype) -> tuple[int, str]:
    """Number (from 1) and text of the line at which `_load` failed. NumPy's own number does not count empty lines."""

    def fails(lines: list[str]) -> bool:
        try:
            _load(lines, dtype)
        except _UNREADABLE:
            return True
        return False

    numbered = enumerate(_lines(path), 1)
    while chunk := list(islice(numbered, _CHUNK)):
        if fails([line for _, line in chunk]):
            return next(entry for entry in chunk if fails([entry[1]]))
    raise NistSetError(f"{path}: was changed while it was read; try again")


def _require(path: Path, is_valid: np.ndarray, expected: str) -> None:
    """Raise NistSetError for the first line that is not valid. is_valid: bool [lines that are not empty]."""
    if not is_valid.all():
        filled = (entry for entry in enumerate(_lines(path), 1) if entry[1].strip())
        number, line = next(islice(filled, int(is_valid.argmin()), None))
        raise _bad_line(path, number, line, expected)


def _require_photos(folder: Path, files: np.ndarray) -> None:
    """Raise NistSetError if the folder lacks some of `files`, bytes [N]. It is listed once: this takes a second."""
    present = np.array([os.fsencode(name) for name in os.listdir(folder)] or [b""])
    missing = np.flatnonzero(~np.isin(files, present))
    if len(missing):
        raise NistSetError(
            f"{folder}: {len(missing)} of the {len(files)} photos that are listed in meta are missing, the first is "
            f"{os.fsdecode(files[missing[0]])!r}; fetch the folder again"
        )


def _bad_line(path: Path, number: int, line: str, expected: str) -> NistSetError:
    """The error for a line of a list, counted from 1."""
    text = line.strip()
    text = text if len(text) <= 120 else text[:120] + "..."
    return NistSetError(f"{path}: line {number} is {text!r} (expected {expected}); fetch the lists in meta again")


def _match(path: Path, files: np.ndarray, other_path: Path, others: np.ndarray) -> np.ndarray:
    """For each name in `files` [N], its row in `others` [N]: int64 [N].

    Both lists must name the same files, in any order. Raises NistSetError.
    """
    for list_path, names in ((path, files), (other_path, others)):
        _require(list_path, np.strings.find(names, b"/") < 0, "a file name without a folder")
        is_first = np.zeros(len(names), dtype=bool)
        is_first[np.unique(names, return_index=True)[1]] = True
        _require(list_path, is_first, "a file that no earlier line lists")
    _require(path, np.isin(files, others), f"a file that is also in {other_path.name}")
    _require(other_path, np.isin(others, files), f"a file that is also in {path.name}")
    order = np.argsort(others)
    return order[np.searchsorted(others, files, sorter=order)]
