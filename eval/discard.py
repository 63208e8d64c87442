"""Error-versus-discard curves: how the error falls when the genuine pairs of the lowest quality are left out.

Grother and Tabassi, "Performance of Biometric Quality Measures", IEEE TPAMI 29 (2007); conventions of Schlett et al.,
"Considerations on the Evaluation of Biometric Quality Assessment Algorithms" (2023): the quality of a pair is the lower
of those of its two images, the threshold stays that of all pairs, pairs of equal quality are discarded together, and
the error is constant between two points.
"""

from typing import NamedTuple

import numpy as np

LARGEST_DISCARD = 0.3  # the area under the curve is taken from 0 to this share


class DiscardCurve(NamedTuple):
    """The points of a curve, which holds the error of each point up to the next point.

    discarded: float64 [points], ascending from 0, the share of genuine pairs that are left out; error: float64
    [points], the false non-match rate (FNMR) of the others.
    """

    discarded: np.ndarray
    error: np.ndarray


def discard_curve(is_missed: np.ndarray, quality: np.ndarray) -> DiscardCurve:
    """The curve of G genuine pairs: bool [G], whether a pair is rejected; [G], its quality."""
    order = np.argsort(quality, kind="stable")
    quality, missed = quality[order], is_missed[order]
    starts = np.flatnonzero(np.append(True, quality[1:] != quality[:-1]))  # of each distinct quality
    left = missed[::-1].cumsum()[::-1]  # missed pairs from each pair on
    return DiscardCurve(starts / len(missed), left[starts] / (len(missed) - starts))


def area_up_to(curve: DiscardCurve, limit: float = LARGEST_DISCARD) -> float:
    """The area under the curve from 0 to `limit` (partial AUC), not divided by `limit`. Lower is better.

    Discarding at random leaves `limit` * FNMR.
    """
    widths = np.diff(np.minimum(np.append(curve.discarded, 1.0), limit))
    return float((widths * curve.error).sum())
