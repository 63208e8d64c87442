"""How a figure is read, by its name: what brings it to percent, and which of two is the better one."""

import re
from collections.abc import Callable
from typing import NamedTuple


class Reading(NamedTuple):
    """factor: from the number to what people read, with `digits` after the point; words: for its name, where that does
    not say it; percent: whether it is one then; better: max, min, or None where neither is."""

    factor: float = 1.0
    digits: int = 2
    words: str = ""
    percent: bool = True
    better: Callable | None = max


# By the whole name within a set, or its end. What is not here is in percent already, the more the better.
_READINGS = {
    r"Accuracy-Flip": Reading(100, words="accuracy [%] (std over folds)"),
    r"Accuracy-Std": Reading(100, better=None),
    r"TAR_at_FAR_[\d.e-]+|AUC": Reading(100),
    r"EER": Reading(100, better=min),
    r"XNorm": Reading(digits=4, words="mean norm of embeddings", percent=False, better=None),
    r".*_thresh_at_fpr_[\d.e-]+": Reading(digits=4, percent=False, better=None),
}


def reading(figure: str) -> Reading:
    """How the figure of this name is read."""
    return next((found for name, found in _READINGS.items() if re.fullmatch(name, figure)), Reading())


def label(figure: str) -> str:
    """Its name for people, with the unit."""
    found = reading(figure)
    return found.words or (f"{figure} [%]" if found.percent else figure)


def text(figure: str, value: float | None) -> str:
    """Its number for people; a dash where there is none."""
    found = reading(figure)
    return "-" if value is None else f"{found.factor * value:.{found.digits}f}"
