"""A check before training: does the teacher find images of one identity more alike than images of two?"""

from collections.abc import Callable

import numpy as np

from data.dataset import FaceDataset
from data.pairs import pair_cosines, sample_pairs, significantly_higher
from eval.metrics import unit_length

PAIRS = 32
# Labels are read to find pairs. Most sets are sorted by identity, so runs of neighbours are read, each of which costs a
# slow disk as much as one image. For sets that are not sorted, single images from the whole set are read as well.
RUNS, RUN_LENGTH, SINGLE = 32, 16, 128


def teacher_notes(dataset: FaceDataset, embed: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[str, ...]:
    """Lines for the log: the teacher's mean cosines on pairs of the training set, and a warning if they do not differ.

    embed: positions [N], ascending -> the teacher's embeddings [N, D]; called once, for at most 2 * PAIRS images.
    seed: of the choice of pairs; no other random stream is used. Raises InputError for unreadable images or labels.
    """
    rng = np.random.default_rng(seed)
    positions = np.unique(_candidates(len(dataset), rng))
    pairs = sample_pairs(positions, dataset.read_labels(positions), PAIRS, rng)
    if not (len(pairs.same) and len(pairs.different)):
        return (
            f"the teacher was not compared with the labels: among {len(positions)} images of the training set, "
            f"{len(pairs.same)} pairs are of one identity and {len(pairs.different)} of two",
        )
    used = pairs.positions()
    cosines = pair_cosines(pairs, used, unit_length(embed(used)))
    line = f"teacher on {len(pairs.same)} pairs of the training set: {cosines}"
    if significantly_higher(*cosines):
        return (line,)
    return line, (
        "WARNING: to the teacher, images of one identity are no more alike than images of two. Usual causes: labels "
        "that do not belong to the images, another colour order or preprocessing than the teacher's, a teacher with "
        "random weights. tools/check_data.py finds out more"
    )


def _candidates(count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions below `count`, some more than once; all positions of a small set."""
    if count <= RUNS * RUN_LENGTH:
        return np.arange(count)
    starts = rng.integers(0, count - RUN_LENGTH + 1, RUNS)
    return np.concatenate([np.add.outer(starts, np.arange(RUN_LENGTH)).ravel(), rng.integers(0, count, SINGLE)])
