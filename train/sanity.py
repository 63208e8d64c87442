"""Whether teacher and labels agree, asked of a few images of the training set before training starts."""

from collections.abc import Callable

import numpy as np

from data.dataset import FaceDataset
from data.pairs import pair_cosines, sample_pairs, significantly_higher

PAIRS = 32
# Labels that are read to find pairs: of runs of neighbours, for most sets are in the order of their identities and a
# run costs a slow disk as much as one image, and of images drawn from the whole set, for the sets that are not.
RUNS, RUN_LENGTH, SINGLE = 32, 16, 128


def teacher_notes(dataset: FaceDataset, embed: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[str, ...]:
    """What to log: the teacher's mean cosines on pairs of the training set, and a warning where they tell nothing.

    embed: positions [N], ascending -> the teacher's embeddings [N, D]; called once, for at most 2 * PAIRS images. Draws
    from a random stream of its own. Raises InputError for images or labels that cannot be read.
    """
    rng = np.random.default_rng(seed)
    positions = np.unique(_candidates(len(dataset), rng))
    pairs = sample_pairs(positions, dataset.read_labels(positions), PAIRS, rng)
    if not (len(pairs.same) and len(pairs.different)):
        return (
            f"teacher not held against the labels: of {len(positions)} images of the training set, "
            f"{len(pairs.same)} pairs are of one identity and {len(pairs.different)} of two",
        )
    used = pairs.positions()
    cosines = pair_cosines(pairs, used, embed(used))
    line = f"teacher on {len(pairs.same)} pairs of the training set: {cosines}"
    if significantly_higher(*cosines):
        return (line,)
    return line, (
        "WARNING: to the teacher, images of one identity are no more alike than images of two. Usual causes: labels "
        "shuffled against the images, another colour order or preprocessing than the teacher's, a teacher of random "
        "weights. tools/check_data.py looks into it"
    )


def _candidates(count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions below `count`, some more than once; all of them where that is not many."""
    if count <= RUNS * RUN_LENGTH:
        return np.arange(count)
    starts = rng.integers(0, count - RUN_LENGTH + 1, RUNS)
    return np.concatenate([np.add.outer(starts, np.arange(RUN_LENGTH)).ravel(), rng.integers(0, count, SINGLE)])
