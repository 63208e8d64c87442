"""Pair verification on .bin sets: ten-fold accuracy as LFW's protocol and the public evaluation code define it."""

import numpy as np
from sklearn.metrics import auc, roc_curve
from sklearn.model_selection import KFold

THRESHOLDS = np.arange(400) / 100  # of the squared distance between unit embeddings
FOLDS = 10
FARS = (1e-3, 1e-2)


def evaluate_pairs(embeddings: np.ndarray, is_same: np.ndarray) -> dict[str, float | None]:
    """embeddings [2P, D] (image + flip; rows 2i and 2i + 1 are pair i), is_same bool [P] -> figures by result name.

    Accuracy-Flip: the mean over ten folds; Accuracy-Std: their population deviation. A fold's threshold is the first
    best one of the other nine. Over all pairs, without folds: TAR_at_FAR_..., AUC and EER as `roc_figures` has them.
    All are fractions. Raises ValueError for fewer than ten pairs or shapes that disagree.
    """
    return score_pairs(embeddings, is_same)[0]


def score_pairs(embeddings: np.ndarray, is_same: np.ndarray) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """What `evaluate_pairs` gives, and what it rests on.

    Arrays: is_same bool [P]; score [P], the cosine; decision bool [P], whether the fold's threshold calls it the same;
    threshold [10], the folds' thresholds as cosines.
    """
    is_same = np.asarray(is_same, dtype=bool)
    if len(embeddings) != 2 * len(is_same) or len(is_same) < FOLDS:
        raise ValueError(
            f"{len(embeddings)} embeddings for {len(is_same)} pairs: two a pair, and at least {FOLDS} pairs"
        )
    distances = squared_distances(embeddings)
    correct = (distances[:, None] < THRESHOLDS) == is_same[:, None]  # [P, thresholds]
    right = np.empty(len(is_same), dtype=bool)
    thresholds, accuracies = [], []
    for train, test in KFold(FOLDS, shuffle=False).split(correct):
        best = correct[train].sum(0).argmax()  # the first of the best
        right[test] = correct[test, best]
        thresholds.append(THRESHOLDS[best])
        accuracies.append(right[test].mean())
    cosines = 1 - distances / 2  # of unit vectors
    figures = {
        "Accuracy-Flip": float(np.mean(accuracies)),
        "Accuracy-Std": float(np.std(accuracies)),
        **roc_figures(is_same, cosines),
    }
    arrays = {
        "is_same": is_same,
        "score": cosines,
        "decision": right == is_same,
        "threshold": 1 - np.array(thresholds) / 2,
    }
    return figures, arrays


def roc_figures(is_same: np.ndarray, scores: np.ndarray) -> dict[str, float | None]:
    """From is_same bool [P] and scores [P], higher for the same: fractions by result name; None for pairs of one kind.

    TAR_at_FAR_x: the largest share of genuine pairs accepted where at most the share x of impostors is. AUC: the area
    under the ROC curve by trapezoids. EER: where the curve, its points joined by lines, has FAR = 1 - TAR.
    """
    names = [*(f"TAR_at_FAR_{wanted}" for wanted in FARS), "AUC", "EER"]
    if is_same.all() or not is_same.any():
        return dict.fromkeys(names)
    far, tar, _ = roc_curve(is_same, scores, drop_intermediate=False)
    tars = [tar[far <= wanted][-1] for wanted in FARS]
    excess = far + tar - 1  # -1 at the curve's start, 1 at its end, never falling
    after = int((excess >= 0).argmax())
    share = -excess[after - 1] / (excess[after] - excess[after - 1])
    eer = far[after - 1] + share * (far[after] - far[after - 1])
    return dict(zip(names, map(float, (*tars, auc(far, tar), eer)), strict=True))


def squared_distances(embeddings: np.ndarray) -> np.ndarray:
    """[2P, D] -> float64 [P], ||hat a - hat b||^2 of each pair; an embedding of length 0 stays 0."""
    unit = embeddings.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return np.square(unit[0::2] - unit[1::2]).sum(1)
