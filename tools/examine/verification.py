"""Checks verification sets: every image, contradictions between pairs, and folds with pairs of one class."""

import numpy as np

from data.arrow_set import ArrowVerificationSet
from data.bin_set import VerificationSet
from data.images import decode_rgb, fit
from data.pairs import Pairs
from data.template_metadata import ArrowSetError
from eval.verification import FOLDS, one_sided_folds
from tools.examine.images import OTHER_SIZE, ROW, Checked, check_all_images, check_image
from tools.examine.report import Report


class VerificationImages:
    """The images of a verification set, .bin or Arrow."""

    def __init__(self, images: VerificationSet | ArrowVerificationSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> Checked:
        checked = Checked(np.zeros(len(positions), ROW), [], [])
        for row, position in zip(checked.rows, positions, strict=True):
            name = f"image {position}"
            try:
                data = self.images.read(int(position))
            except ArrowSetError:
                checked.problems.append(("image that is missing", name))
                continue
            for finding in check_image(data, row):
                (checked.notes if finding == OTHER_SIZE else checked.problems).append((finding, name))
        return checked

    def image(self, position: int) -> np.ndarray:
        """Return uint8 [112, 112, 3] RGB, for a usable image."""
        return fit(decode_rgb(self.images.read(position), f"image {position}"))


def examine_verification_set(
    images: VerificationSet | ArrowVerificationSet, report: Report, num_workers: int
) -> tuple[VerificationImages, Pairs]:
    """Check a set. Returns its images, and the pairs of which both images can be used."""
    source, is_same = VerificationImages(images), images.is_same
    rows = check_all_images(source, report, num_workers)
    report.figures |= {"pairs": len(is_same), "same": int(is_same.sum()), "different": int((~is_same).sum())}
    _check_classes(is_same, report)
    _check_contradictions(rows["digest"], is_same, report)
    is_usable = rows["is_usable"].reshape(-1, 2).all(1)
    positions = np.arange(len(source)).reshape(-1, 2)
    return source, Pairs(positions[is_same & is_usable], positions[~is_same & is_usable])


def _check_classes(is_same: np.ndarray, report: Report) -> None:
    """Check that the set, and each of the protocol's folds, has same and different pairs."""
    if len(is_same) < FOLDS:
        report.problem(f"fewer pairs than the protocol has folds ({FOLDS})", [f"{len(is_same)} pairs"])
    if is_same.all() or not is_same.any():
        report.problem("only one class of pairs", ["all are the same" if is_same.all() else "all are different"])
    elif len(is_same) >= FOLDS:
        report.warning(
            "fold with one class of pairs (mix same and different pairs over the list)",
            (f"fold {number}" for number in one_sided_folds(is_same)),
        )


def _check_contradictions(digests: np.ndarray, is_same: np.ndarray, report: Report) -> None:
    """Find pairs of equal images, and pairs that occur twice. digests: uint64 [2P, 2], hashes of the images."""
    distinct, image = np.unique(digests, axis=0, return_inverse=True)
    report.figures["distinct_images"] = len(distinct)
    pairs = np.sort(image.reshape(-1, 2), axis=1)  # (a, b) and (b, a) are the same pair
    is_one_image = pairs[:, 0] == pairs[:, 1]
    wrong, odd = np.flatnonzero(is_one_image & ~is_same), np.flatnonzero(is_one_image & is_same)
    report.problem("pair of one image with itself, labelled different", (f"pair {number}" for number in wrong))
    report.note("pair of one image with itself, labelled the same", (f"pair {number}" for number in odd))
    order = np.lexsort((is_same, pairs[:, 1], pairs[:, 0]))
    repeated = np.flatnonzero((pairs[order[1:]] == pairs[order[:-1]]).all(1))
    first, second = order[repeated], order[repeated + 1]
    agrees = is_same[first] == is_same[second]
    names = [f"pairs {min(a, b)} and {max(a, b)}" for a, b in zip(first, second, strict=True)]
    report.problem(
        "pair labelled both the same and different", (name for name, ok in zip(names, agrees, strict=True) if not ok)
    )
    report.note("pair that occurs twice", (name for name, ok in zip(names, agrees, strict=True) if ok))
