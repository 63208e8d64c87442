"""IJB-B and IJB-C as NIST and InsightFace ship them: loosely cropped photos and lists beside them in plain text."""

import os
import warnings
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from data.images import SIZE, decode_rgb
from utils.errors import InputError

# Where ArcFace puts eyes, nose and corners of the mouth in an aligned face: pixels (x, y).
ARCFACE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
PREFIXES = ("ijbb", "ijbc")
LISTS = {  # the files of meta: the fields of a line, and what an error says that it must hold
    "face_tid_mid": (
        [("file", "S"), ("template", np.int64), ("medium", np.int64)],
        "a file, its template and its medium, these in whole numbers",
    ),
    "name_5pts_score": (
        [("file", "S"), ("points", np.float64, (5, 2)), ("score", np.float64)],
        "a file, x and y of its five points, the detector's score",
    ),
    "template_pair_label": (
        [("p1", np.int32), ("p2", np.int32), ("label", np.int32)],
        "two templates and a label, in whole numbers",
    ),
}
_NO_FACE = 1e-6  # square pixels; eyes 10 pixels apart give some 770, five points at one place rounding errors of 1e-11
LONGEST_NAME = 255  # bytes of a file's name on common file systems
_LINES_A_TRY = 4096  # by which a line that cannot be read is searched for


class NistSetError(InputError):
    """An IJB folder that is incomplete, broken or at odds with itself; the message names file, line and fix."""


def is_nist(path: str | os.PathLike) -> bool:
    """Whether a folder has this layout, and not that of data.arrow_set."""
    return any(Path(path, folder).is_dir() for folder in ("meta", "loose_crop"))


class NistSet(torch.utils.data.Dataset):
    """N photos in the order of face_tid_mid; set[positions] aligns the faces: uint8 [n, 112, 112, 3] RGB.

    metadata: faceness_scores float64 [N] (the detector's), templates and medias int64 [N]; label (1 genuine, 0
    impostor), p1 and p2 (template ids) int32 [P]. Photos are read when they are asked for. Raises NistSetError.
    """

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = str(path)
        paths = _find_lists(self.path)
        of_faces, of_points, of_pairs = paths
        faces, scored, pairs = (_read(path, *LISTS[name]) for path, name in zip(paths, LISTS, strict=True))
        transforms = similarity_to_arcface(scored["points"])
        usable = np.isfinite(transforms).all((1, 2)) & np.isfinite(scored["score"])
        _require(of_points, usable, "finite numbers, and the points of a face, not all at one place")
        _require(of_pairs, (pairs["label"] == 0) | (pairs["label"] == 1), "the label 0 (impostor) or 1 (genuine)")
        rows = _matched(of_faces, faces["file"], of_points, scored["file"])
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
            raise NistSetError(f"{path}: meta lists it, but it cannot be read ({error}); fetch it again") from error
        # Bilinear, and black outside of the photo.
        return cv2.warpAffine(decode_rgb(encoded, str(path)), self._transforms[position], (SIZE, SIZE))


def similarity_to_arcface(points: np.ndarray) -> np.ndarray:
    """Matrices [N, 2, 3] that take points [N, 5, 2] nearest to ArcFace's by rotation, scale and shift; all float64.

    The least squares of Umeyama, "Least-squares estimation of transformation parameters between two point patterns",
    1991, in the plane: with a point (x, y) as x + iy such a map is z -> a z + b, and by the normal equations, for
    deviations z', w' from the means, a = sum(conj(z') w') / sum(|z'|^2). NaN where points tell no direction (all at one
    place) or are not finite.
    """
    with np.errstate(all="ignore"):
        z, w = points @ [1, 1j], ARCFACE_POINTS @ [1, 1j]
        z_mean, w_mean = z.mean(1), w.mean()
        deviations = z - z_mean[:, None]
        covariance = (deviations.conj() * (w - w_mean)).sum(1)
        a = np.where(abs(covariance) > _NO_FACE, covariance / (abs(deviations) ** 2).sum(1), np.nan)
        b = w_mean - a * z_mean
    return np.stack([a.real, -a.imag, b.real, a.imag, a.real, b.imag], axis=1).reshape(-1, 2, 3)


def _find_lists(path: str) -> list[Path]:
    """The files of LISTS, in its order: those of IJB-B or those of IJB-C."""
    files = {prefix: [Path(path, "meta", f"{prefix}_{name}.txt") for name in LISTS] for prefix in PREFIXES}
    present = [prefix for prefix in PREFIXES if any(file.exists() for file in files[prefix])]
    if len(present) != 1:
        raise NistSetError(
            f"{path}: meta has lists of {' and '.join(present) or 'no set'}; there must be those of one: "
            f"{', '.join(f'PREFIX_{name}.txt' for name in LISTS)}, where PREFIX is {' or '.join(PREFIXES)}"
        )
    missing = [str(file) for file in files[present[0]] if not file.is_file()]
    if not Path(path, "loose_crop").is_dir():
        missing.append(str(Path(path, "loose_crop")))
    if missing:
        raise NistSetError(f"{path}: incomplete: there is no {', no '.join(missing)}; fetch the whole folder")
    return files[present[0]]


def _read(path: Path, fields: list[tuple], expected: str) -> np.ndarray:
    """Lines of words between white space as a structured array [lines]; bytes get the width of the longest file."""
    if fields[0] == ("file", "S"):
        fields = [("file", f"S{_width(path, expected)}"), *fields[1:]]
    dtype = np.dtype(fields)
    try:
        table = _load(path, dtype)
    except ValueError:
        raise _bad_line(path, *_first_unreadable(path, dtype), expected) from None
    if not len(table):
        raise NistSetError(f"{path}: empty; each line must hold {expected}; fetch it again")
    return table


def _width(path: Path, expected: str) -> int:
    """Bytes of the longest file's name. Every name takes as many in the table, so that a long one is refused."""
    width = 1
    with open(path, encoding="latin1") as file:
        for number, line in enumerate(file, 1):
            words = line.split(None, 1)
            if words and len(words[0]) > width:
                width = len(words[0])
                if width > LONGEST_NAME:
                    raise _bad_line(path, number, line, f"{expected}; a name has at most {LONGEST_NAME} bytes")
    return width


def _load(lines: Path | list[str], dtype: np.dtype) -> np.ndarray:
    """NumPy's reader, at 15.7 million lines faster than pandas' and with half its memory. Raises ValueError."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty lines and files
        warnings.simplefilter("error", DeprecationWarning)  # of fractions, which older NumPy cuts to integers
        try:  # latin1 keeps bytes as they are
            return np.loadtxt(lines, dtype, comments=None, ndmin=1, encoding="latin1")
        except DeprecationWarning as error:
            raise ValueError(str(error)) from error


def _first_unreadable(path: Path, dtype: np.dtype) -> tuple[int, str]:
    """Number, from 1 on, and text of the line that made `_load` fail; rows in NumPy's messages skip empty lines."""

    def fails(lines: list[str]) -> bool:
        try:
            _load(lines, dtype)
        except ValueError:
            return True
        return False

    with open(path, encoding="latin1") as file:
        numbered = enumerate(file, 1)
        while chunk := list(islice(numbered, _LINES_A_TRY)):
            if fails([line for _, line in chunk]):
                return next(entry for entry in chunk if fails([entry[1]]))
    raise NistSetError(f"{path}: changed while it was read; try again")


def _require(path: Path, good: np.ndarray, expected: str) -> None:
    """Raise for the first line, of those that are not empty, for which good [lines] is false."""
    if not good.all():
        with open(path, encoding="latin1") as file:
            filled = (entry for entry in enumerate(file, 1) if entry[1].strip())
            number, line = next(islice(filled, int(good.argmin()), None))
        raise _bad_line(path, number, line, expected)


def _bad_line(path: Path, number: int, line: str, expected: str) -> NistSetError:
    text = line.strip()
    text = text if len(text) <= 120 else text[:120] + "..."
    return NistSetError(f"{path}: line {number} is {text!r}; expected {expected}; fetch the lists of meta again")


def _matched(path: Path, files: np.ndarray, other_path: Path, others: np.ndarray) -> np.ndarray:
    """The row of `others` with each of files [N]: the lists must have the same files, and may differ in their order."""
    for here, names in ((path, files), (other_path, others)):
        _require(here, np.strings.find(names, b"/") < 0, "the name of a file in loose_crop, without a folder")
        first = np.zeros(len(names), dtype=bool)
        first[np.unique(names, return_index=True)[1]] = True
        _require(here, first, "a file that no line before it names")
    _require(path, np.isin(files, others), f"a file that {other_path.name} lists too")
    _require(other_path, np.isin(others, files), f"a file that {path.name} lists too")
    order = np.argsort(others)
    return order[np.searchsorted(others, files, sorter=order)]
