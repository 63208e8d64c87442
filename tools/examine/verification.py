"""Verification sets: every image, and whether pairs contradict each other."""

import numpy as np

from data.bin_set import VerificationSet
from data.images import decode_rgb, fit
from data.pairs import Pairs
from eval.verification import FOLDS
from tools.examine.images import OTHER_SIZE, ROW, Looked, look, look_at_all
from tools.examine.report import Report


class BinImages:
    """The images of a verification set."""

    def __init__(self, images: VerificationSet) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, positions: np.ndarray) -> Looked:
        looked = Looked(np.zeros(len(positions), ROW), [], [])
        for row, position in zip(looked.rows, positions, strict=True):
            for kind in look(bytes(self.images.encoded[position]), row):
                (looked.notes if kind == OTHER_SIZE else looked.problems).append((kind, f"image {position}"))
        return looked

    def image(self, position: int) -> np.ndarray:
        """uint8 [112, 112, 3] RGB, of an image that is sound."""
        return fit(decode_rgb(self.images.encoded[position], f"image {position}"))


def examine_bin(images: VerificationSet, report: Report, num_workers: int) -> tuple[BinImages, Pairs]:
    """The images of a set, and its pairs that can be embedded."""
    source, is_same = BinImages(images), images.is_same
    rows = look_at_all(source, report, num_workers)
    report.figures |= {"pairs": len(is_same), "same": int(is_same.sum()), "different": int((~is_same).sum())}
    if is_same.all() or not is_same.any():
        report.problem("pairs of one kind only", ["all are the same" if is_same.all() else "all are different"])
    if len(is_same) < FOLDS:
        report.problem(f"fewer pairs than the protocol has folds ({FOLDS})", [f"{len(is_same)} pairs"])
    distinct, image = np.unique(rows["digest"], axis=0, return_inverse=True)
    report.figures["distinct_images"] = len(distinct)
    pairs = np.sort(image.reshape(-1, 2), axis=1)  # the same two images in either order
    twin = pairs[:, 0] == pairs[:, 1]
    report.problem("pair of one image, said to be different", (f"pair {n}" for n in np.flatnonzero(twin & ~is_same)))
    report.note("pair of one image, said to be the same", (f"pair {n}" for n in np.flatnonzero(twin & is_same)))
    order = np.lexsort((is_same, pairs[:, 1], pairs[:, 0]))
    again = np.flatnonzero((pairs[order[1:]] == pairs[order[:-1]]).all(1))
    one, other = order[again], order[again + 1]
    agree = is_same[one] == is_same[other]
    names = [f"pairs {min(a, b)} and {max(a, b)}" for a, b in zip(one, other, strict=True)]
    report.problem(
        "pair said to be the same and different", (n for n, same in zip(names, agree, strict=True) if not same)
    )
    report.note("pair that stands twice", (n for n, same in zip(names, agree, strict=True) if same))
    decodes = rows["sound"].reshape(-1, 2).all(1)
    rows_of = np.arange(len(source)).reshape(-1, 2)
    return source, Pairs(rows_of[is_same & decodes], rows_of[~is_same & decodes])
