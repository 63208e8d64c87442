"""The arithmetic that the protocols share: unit length, ROC curves, rank-k rates, confidence intervals and tests."""

from typing import NamedTuple

import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import auc

SHORTEST = 1e-12  # shorter embeddings are divided by this, so that an embedding of length 0 stays 0
ROWS_PER_CHUNK = 16_384  # float64: 64 MB with 512 dimensions
Z_95 = 1.959964  # 95 % of a normal distribution is within this many standard deviations of its mean


def lengths(embeddings: np.ndarray) -> np.ndarray:
    """Euclidean lengths, float64 [N] and at least 1e-12, of embeddings [N, D]."""
    result = np.empty(len(embeddings))
    for start in range(0, len(embeddings), ROWS_PER_CHUNK):
        chunk = slice(start, start + ROWS_PER_CHUNK)
        result[chunk] = np.linalg.norm(embeddings[chunk].astype(np.float64, copy=False), axis=1)
    return np.maximum(result, SHORTEST, out=result)


def unit_length(embeddings: np.ndarray) -> np.ndarray:
    """A float64 copy [N, D] of embeddings [N, D] with rows of length 1; a row of length 0 stays 0."""
    unit = embeddings.astype(np.float64)
    unit /= lengths(unit)[:, None]
    return unit


class RocCurve(NamedTuple):
    """Points of a ROC curve, from no pair accepted to all pairs accepted.

    fpr and tpr, also called FAR and TAR: float64 [points], the shares of impostor and of genuine pairs whose score is
    at least the threshold; thresholds: [points], descending, the first one infinite.
    """

    fpr: np.ndarray
    tpr: np.ndarray
    thresholds: np.ndarray


def roc_curve(label: np.ndarray, scores: np.ndarray, drop_intermediate: bool = True) -> RocCurve:
    """The points of scikit-learn's `roc_curve`, in a tenth of its time.

    label [P], 1 or True for genuine pairs; scores [P], higher for genuine pairs. `drop_intermediate` leaves out points
    between two equal steps of the curve, as scikit-learn does. Unlike in scikit-learn, the rate of a class without
    pairs is 0.
    """
    # Most of the time is saved by sorting only the scores, without their labels.
    ascending = np.sort(scores)
    start = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))  # of each distinct score
    thresholds = ascending[start]
    genuine = np.bincount(np.searchsorted(thresholds, scores[label == 1]), minlength=len(start))  # per distinct score
    if drop_intermediate:
        impostors = np.diff(start, append=len(scores)) - genuine
        turn = (genuine[1:-1] != genuine[:-2]) | (impostors[1:-1] != impostors[:-2])
        kept = np.flatnonzero(np.concatenate([[True], turn, [True]])[: len(start)])  # both ends stay
    else:
        kept = np.arange(len(start))
    true = genuine[::-1].cumsum()[::-1][kept]
    false = len(scores) - start[kept] - true
    return RocCurve(
        np.append(false, 0)[::-1] / max(1, false[0]),
        np.append(true, 0)[::-1] / max(1, true[0]),
        np.append(thresholds[kept], np.inf)[::-1],
    )


def tpr_nearest_fpr(curve: RocCurve, fpr: float) -> tuple[float, float]:
    """(TPR, threshold) at the point whose FPR is nearest to `fpr`; of equally near points, the one with the largest FPR
    and then the largest TPR."""
    point = len(curve.fpr) - 1 - int(np.abs(curve.fpr[::-1] - fpr).argmin())
    return float(curve.tpr[point]), float(curve.thresholds[point])


def tar_at_far(curve: RocCurve, far: float) -> tuple[float, float]:
    """(TAR, threshold) with the largest TAR at a FAR of at most `far`. The curve must have all points
    (`drop_intermediate=False`)."""
    point = np.flatnonzero(curve.fpr <= far)[-1]
    return float(curve.tpr[point]), float(curve.thresholds[point])


def is_measurable(far: float, impostors: int, false_accepts: int = 1) -> bool:
    """Whether a TAR at this FAR can be measured with so many impostor pairs: at least `false_accepts` of them are
    expected to be accepted. With less than one, a single pair decides where the threshold is."""
    return impostors * far > false_accepts - 1e-9  # 1e-5 has no exact value in binary


def area_under(curve: RocCurve) -> float:
    """The area under the curve (AUC), by trapezoids."""
    return float(auc(curve.fpr, curve.tpr))


def equal_error_rate(curve: RocCurve) -> float:
    """The FAR at which FAR = 1 - TAR (EER), with straight lines between the points of the curve."""
    excess = curve.fpr + curve.tpr - 1  # -1 at the first point, 1 at the last; it never falls
    after = int((excess >= 0).argmax())
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    return float(curve.fpr[after - 1] + share * (curve.fpr[after] - curve.fpr[after - 1]))


def roc_corners(label: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR), each [corners], of the ROC curve drawn as stairs: each TAR holds from its FAR up to the next FAR.

    label bool [P]; scores [P]. FARs ascend from 0 to 1. The number of corners is at most that of genuine pairs plus
    two; it does not depend on the number of impostor pairs.
    """
    curve = roc_curve(label, scores, drop_intermediate=False)
    rises = np.flatnonzero(curve.tpr[1:] > curve.tpr[:-1]) + 1
    far = np.concatenate([[0], curve.fpr[rises], [1]])
    tar = np.concatenate([[0], curve.tpr[rises], [1]])
    highest = np.append(far[1:] != far[:-1], True)
    return far[highest], tar[highest]


def rank_k_rate(rank: np.ndarray, k: int) -> float:
    """The percentage of probes whose nearest mate has at most rank k.

    rank [probes]: the rank of each probe's nearest mate, counted from 1. The rate is computed in float32, because the
    public evaluation code rounds its rates to float32.
    """
    return float(np.float32((rank <= k).mean()) * np.float32(100))


def wilson_interval(hits: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower and upper ends of the 95 % confidence intervals of the rates hits / counts, as fractions.

    Wilson, J. Am. Stat. Assoc. 22 (1927).
    """
    rate, spread = hits / counts, Z_95 * Z_95 / counts
    center, half = rate + spread / 2, np.sqrt(spread * rate * (1 - rate) + spread**2 / 4)
    return (center - half) / (1 + spread), (center + half) / (1 + spread)


def mcnemar(first: np.ndarray, second: np.ndarray) -> tuple[int, int, float]:
    """(number of pairs that only the first method decides correctly, number of those that only the second does, p).

    first and second: bool [P], whether each method decides a pair correctly. If both methods were equally good, each of
    the counted pairs would be the first method's with probability 1/2. p is the two-sided probability of a split that
    is at least as uneven (McNemar, Psychometrika 1947, in its exact form).
    """
    only_first, only_second = int((first & ~second).sum()), int((~first & second).sum())
    total = only_first + only_second
    return only_first, only_second, float(binomtest(only_first, total).pvalue) if total else 1.0


def contiguous_folds(count: int, folds: int) -> np.ndarray:
    """The number of the fold of each of `count` pairs, int [count], from 0.

    As in scikit-learn's KFold without shuffling, folds are contiguous, and the first count % folds of them have one
    more pair than the others.
    """
    sizes = count // folds + (np.arange(folds) < count % folds)
    return np.repeat(np.arange(folds), sizes)
