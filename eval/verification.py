"""Pair verification on .bin sets: ten-fold accuracy as LFW's protocol and the public evaluation code define it."""

import numpy as np
from sklearn.model_selection import KFold

THRESHOLDS = np.arange(400) / 100  # of the squared distance between unit embeddings
FOLDS = 10


def evaluate_pairs(embeddings: np.ndarray, is_same: np.ndarray) -> dict[str, float]:
    """embeddings [2P, D] (image + flip; rows 2i and 2i + 1 are pair i), is_same bool [P] -> figures by result name.

    Accuracy-Flip: the mean over ten folds, a fraction; Accuracy-Std: their population deviation. A fold's threshold is
    the first best one of the other nine. Raises ValueError for fewer than ten pairs or shapes that disagree.
    """
    is_same = np.asarray(is_same, dtype=bool)
    if len(embeddings) != 2 * len(is_same) or len(is_same) < FOLDS:
        raise ValueError(
            f"{len(embeddings)} embeddings for {len(is_same)} pairs: two a pair, and at least {FOLDS} pairs"
        )
    distances = squared_distances(embeddings)
    correct = (distances[:, None] < THRESHOLDS) == is_same[:, None]  # [P, thresholds]
    accuracies = []
    for train, test in KFold(FOLDS, shuffle=False).split(correct):
        best = correct[train].sum(0).argmax()  # the first of the best
        accuracies.append(correct[test, best].mean())
    return {"Accuracy-Flip": float(np.mean(accuracies)), "Accuracy-Std": float(np.std(accuracies))}


def squared_distances(embeddings: np.ndarray) -> np.ndarray:
    """[2P, D] -> float64 [P], ||hat a - hat b||^2 of each pair; an embedding of length 0 stays 0."""
    unit = embeddings.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return np.square(unit[0::2] - unit[1::2]).sum(1)
