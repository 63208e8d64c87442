"""Check that a network separates identities: pairs sampled by label, their cosines, a test of the difference.

`same` stands for genuine pairs (one identity), `different` for impostor pairs (two identities).
"""

from typing import NamedTuple

import numpy as np

# Labels are read to find pairs. Most sets are sorted by identity, so runs of consecutive images are read: on a slow
# disk, a run takes as long as one image. For sets that are not sorted, single images from the set are read as well.
RUN_LENGTH, SINGLE = 16, 128
MIN_STANDARD_ERRORS = 3  # a larger difference of means counts as significant


class Pairs(NamedTuple):
    """Genuine and impostor pairs, as positions of images. same: int64 [P, 2]; different: int64 [Q, 2]."""

    same: np.ndarray
    different: np.ndarray

    def positions(self) -> np.ndarray:
        """All positions in the pairs, in ascending order, each once."""
        return np.unique(np.concatenate(self))


class Cosines(NamedTuple):
    """Cosines of genuine and impostor pairs. same: float64 [P]; different: float64 [Q]."""

    same: np.ndarray
    different: np.ndarray

    def __str__(self) -> str:
        same, different = (f"{cosines.mean():.3f}" if len(cosines) else "none" for cosines in self)
        return f"cosine {same} same identity, {different} different"


def sample_positions(count: int, runs: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of a set of `count` images, ascending, in which to look for pairs.

    All positions if there are at most runs * RUN_LENGTH; else those of `runs` runs of RUN_LENGTH images, and SINGLE
    others.
    """
    if count <= runs * RUN_LENGTH:
        return np.arange(count)
    starts = rng.integers(0, count - RUN_LENGTH + 1, runs)
    return np.unique(
        np.concatenate([np.add.outer(starts, np.arange(RUN_LENGTH)).ravel(), rng.integers(0, count, SINGLE)])
    )


def sample_pairs(positions: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator) -> Pairs:
    """Sample up to `count` genuine pairs, from as many identities as possible, and at most as many impostor pairs.

    positions: [N], of the images to choose from; labels: [N]. No image is in two genuine pairs. An impostor pair has
    the first image of one genuine pair and the second image of another, so that no other images have to be embedded.
    """
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # identity by identity, shuffled within each
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)  # for each image, where its identity begins
    # Images 0 and 1 of an identity are a genuine pair, images 2 and 3 another. `first`: where each pair begins.
    first = np.flatnonzero(((np.arange(len(order)) - starts)[:-1] % 2 == 0) & (ordered[1:] == ordered[:-1]))
    # Take the first pair of every identity before any second pair.
    first = np.sort(first[np.lexsort((rng.random(len(first)), first - starts[first]))][:count])
    same = np.stack([order[first], order[first + 1]], 1)
    shift = max(np.unique(ordered[first], return_counts=True)[1], default=0)  # at least the pairs of any identity
    different = np.stack([same[:, 0], np.roll(same[:, 1], -shift)], 1)
    different = different[labels[different[:, 0]] != labels[different[:, 1]]]
    return Pairs(positions[same], positions[different])


def pair_cosines(pairs: Pairs, positions: np.ndarray, unit: np.ndarray) -> Cosines:
    """The cosines of pairs. unit: unit embeddings [N, D] of the images at `positions` [N], in ascending order."""
    return Cosines(*(_dots(unit[np.searchsorted(positions, images)]) for images in pairs))


def significantly_higher(same: np.ndarray, different: np.ndarray) -> bool:
    """Whether the mean of `same` [P] exceeds that of `different` [Q] by more than MIN_STANDARD_ERRORS standard errors.

    The variance of an array with one value counts as 0. Returns False if an array is empty or not finite.
    """
    if not (len(same) and len(different)):
        return False
    error = np.sqrt(sum(values.var(ddof=1) / len(values) for values in (same, different) if len(values) > 1))
    return bool(same.mean() - different.mean() > MIN_STANDARD_ERRORS * error)


def _dots(pairs: np.ndarray) -> np.ndarray:
    """Dot product of each pair: [P, 2, D] -> [P]."""
    return (pairs[:, 0] * pairs[:, 1]).sum(1)
