"""Whether a network tells identities apart: pairs drawn by label, their cosines, and whether these separate."""

from typing import NamedTuple

import numpy as np

CLEARLY = 3  # standard errors by which a difference of means is no chance


class Pairs(NamedTuple):
    """same: int64 [P, 2], different: int64 [Q, 2]: positions of two images of one identity, and of two."""

    same: np.ndarray
    different: np.ndarray

    def positions(self) -> np.ndarray:
        """The positions that occur, ascending, each once."""
        return np.unique(np.concatenate(self))


class Cosines(NamedTuple):
    """float64 [P] of the pairs of one identity, and [Q] of two."""

    same: np.ndarray
    different: np.ndarray

    def __str__(self) -> str:
        same, different = (f"{kind.mean():.3f}" if len(kind) else "none" for kind in self)
        return f"cosine {same} same identity, {different} different"


def sample_pairs(positions: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> Pairs:
    """Up to `count` pairs of one identity, of as many identities as there are, from the images at `positions` [N].

    labels: [N]. No image is in two of these pairs. The pairs of two identities are made of the same images, the first
    of one pair and the second of another, so that they cost no further embedding: without the former there are none.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # identity by identity, shuffled within each
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)  # where each one's identity begins
    first = np.flatnonzero(((np.arange(len(order)) - starts)[:-1] % 2 == 0) & (ordered[1:] == ordered[:-1]))
    # The first pairs of all identities before the second ones.
    first = np.sort(first[np.lexsort((rng.random(len(first)), first - starts[first]))][:count])
    same = np.stack([order[first], order[first + 1]], 1)
    shift = max(np.unique(ordered[first], return_counts=True)[1], default=0)  # past the pairs of one's own identity
    different = np.stack([same[:, 0], np.roll(same[:, 1], -shift)], 1)
    different = different[labels[different[:, 0]] != labels[different[:, 1]]]
    return Pairs(positions[same], positions[different])


def pair_cosines(pairs: Pairs, positions: np.ndarray, embeddings: np.ndarray) -> Cosines:
    """The cosines of pairs, from embeddings [N, D] of the images at `positions` [N], ascending."""
    unit = embeddings.astype(np.float64)
    unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return Cosines(*(_dots(unit[np.searchsorted(positions, kind)]) for kind in pairs))


def significantly_higher(same: np.ndarray, different: np.ndarray) -> bool:
    """Whether the mean of `same` [P] is above that of `different` [Q] by `CLEARLY` standard errors of the difference.

    Of one value no deviation is known: it counts as 0. Not so where either is empty or not finite.
    """
    if not (len(same) and len(different)):
        return False
    error = np.sqrt(sum(kind.var(ddof=1) / len(kind) for kind in (same, different) if len(kind) > 1))
    return bool(same.mean() - different.mean() > CLEARLY * error)


def _dots(pairs: np.ndarray) -> np.ndarray:
    """[P, 2, D] -> [P]."""
    return (pairs[:, 0] * pairs[:, 1]).sum(1)
