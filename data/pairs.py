"""Whether a network separates identities: pairs sampled by label, their cosines, and a test of the difference."""

from typing import NamedTuple

import numpy as np

MIN_STANDARD_ERRORS = 3  # for a difference of means to count as significant


class Pairs(NamedTuple):
    """Positions of two images each. same: int64 [P, 2], of one identity; different: int64 [Q, 2], of two identities."""

    same: np.ndarray
    different: np.ndarray

    def positions(self) -> np.ndarray:
        """All positions in the pairs, ascending, without repetition."""
        return np.unique(np.concatenate(self))


class Cosines(NamedTuple):
    """Cosines of pairs. same: float64 [P], of one identity; different: float64 [Q], of two identities."""

    same: np.ndarray
    different: np.ndarray

    def __str__(self) -> str:
        same, different = (f"{cosines.mean():.3f}" if len(cosines) else "none" for cosines in self)
        return f"cosine {same} same identity, {different} different"


def sample_pairs(positions: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> Pairs:
    """Sample up to `count` pairs of one identity, from as many identities as possible, and pairs of two identities.

    positions: [N], of the images to choose from; labels: [N]. No image is in two pairs of one identity. The pairs of
    two identities combine the first image of one such pair with the second image of another, so that no further image
    has to be embedded; without pairs of one identity there are none.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # identity by identity, shuffled within each
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)  # for each image, where its identity begins
    first = np.flatnonzero(((np.arange(len(order)) - starts)[:-1] % 2 == 0) & (ordered[1:] == ordered[:-1]))
    # The first pair of every identity comes before any second pair.
    first = np.sort(first[np.lexsort((rng.random(len(first)), first - starts[first]))][:count])
    same = np.stack([order[first], order[first + 1]], 1)
    shift = max(np.unique(ordered[first], return_counts=True)[1], default=0)  # skips the pairs of the same identity
    different = np.stack([same[:, 0], np.roll(same[:, 1], -shift)], 1)
    different = different[labels[different[:, 0]] != labels[different[:, 1]]]
    return Pairs(positions[same], positions[different])


def pair_cosines(pairs: Pairs, positions: np.ndarray, unit: np.ndarray) -> Cosines:
    """The cosines of pairs. unit: unit embeddings [N, D] of the images at `positions` [N], which are ascending."""
    return Cosines(*(_dots(unit[np.searchsorted(positions, images)]) for images in pairs))


def significantly_higher(same: np.ndarray, different: np.ndarray) -> bool:
    """Whether the mean of `same` [P] exceeds that of `different` [Q] by MIN_STANDARD_ERRORS of the difference.

    The deviation of a single value counts as 0. False if either array is empty or not finite.
    """
    if not (len(same) and len(different)):
        return False
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in (same, different) if len(values) > 1))
    return bool(same.mean() - different.mean() > MIN_STANDARD_ERRORS * error)


def _dots(pairs: np.ndarray) -> np.ndarray:
    """Dot product of each pair: [P, 2, D] -> [P]."""
    return (pairs[:, 0] * pairs[:, 1]).sum(1)
