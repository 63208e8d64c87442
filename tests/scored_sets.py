"""Drawn metrics and arrays of scored sets, as the protocols give them."""

import numpy as np
from sklearn.model_selection import KFold

from eval.ijb import VARIANTS, operating_points


def scored_pairs(count: int = 1003, seed: int = 0) -> dict[str, np.ndarray]:
    """Arrays of a verification set; the scores of the two classes overlap, and every fold has another threshold."""
    rng = np.random.default_rng(seed)
    is_same = rng.random(count) < 0.5
    score = np.where(is_same, 0.5, 0.1) + 0.2 * rng.standard_normal(count)
    threshold = 0.3 + 0.01 * np.arange(10.0)
    of_pair = np.empty(count)
    for fold, (_, test) in enumerate(KFold(10).split(score)):
        of_pair[test] = threshold[fold]
    norm = rng.uniform(5, 15, (count, 2)).astype(np.float32)
    return dict(is_same=is_same, score=score, decision=score > of_pair, threshold=threshold, norm=norm)


def scored_templates(count: int = 20_000, genuine: int = 300) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """Metrics and arrays of an IJB set; scores have two decimals, so that they tie within a class and between both."""
    rng = np.random.default_rng(1)
    label = np.zeros(count, dtype=bool)
    label[rng.choice(count, genuine, replace=False)] = True
    metrics, arrays = {}, {"label": label}
    for variant in VARIANTS:
        score = (np.where(label, 0.5, 0.0) + 0.15 * rng.standard_normal(count)).round(2).astype(np.float32)
        arrays[f"{variant}.score"], arrays[f"{variant}.decision"] = score, score > 0.5
        for far, (tar, threshold) in operating_points(label, score).items():
            metrics[f"{variant}_tpr_at_fpr_{far}"], metrics[f"{variant}_thresh_at_fpr_{far}"] = tar, threshold
    return metrics, arrays


def scored_probes(rank: list[int] | np.ndarray, norm: np.ndarray) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Metrics and arrays of a TinyFace set with these ranks and norms of its probes."""
    rank = np.asarray(rank)
    return {f"rank-{k}": float(100 * (rank <= k).mean()) for k in (1, 5, 20)}, dict(rank=rank, norm=norm)
