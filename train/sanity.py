"""A check before training: are images of one identity more similar to the teacher than images of two identities?"""

from collections.abc import Callable

import numpy as np

from data.dataset import FaceDataset
from data.pairs import pair_cosines, sample_pairs, sample_positions, significantly_higher
from eval.metrics import unit_length

PAIRS, RUNS = 32, 32  # at most this many pairs, from this many runs of images


def teacher_notes(dataset: FaceDataset, embed: Callable[[np.ndarray], np.ndarray], seed: int) -> tuple[str, ...]:
    """Return lines for the log: the teacher's mean cosines for pairs of the training set, and maybe a warning.

    The warning is added if the cosines of same and different pairs do not differ clearly. embed: returns the teacher's
    embeddings [N, D] of the images at positions [N], ascending. It is called at most once, with at most 2 * PAIRS
    images. seed: chooses the pairs; the global random states are not used. Raises InputError for unreadable images or
    labels.
    """
    rng = np.random.default_rng(seed)
    positions = sample_positions(len(dataset), RUNS, rng)
    pairs = sample_pairs(positions, dataset.read_labels(positions), PAIRS, rng)
    if not (len(pairs.same) and len(pairs.different)):
        return (
            f"the teacher was not compared with the labels: in a sample of {len(positions)} training images, "
            f"{len(pairs.same)} pairs are of one identity and {len(pairs.different)} of two",
        )
    used = pairs.positions()
    cosines = pair_cosines(pairs, used, unit_length(embed(used)))
    line = f"teacher on {len(pairs.same)} pairs of the training set: {cosines}"
    if significantly_higher(*cosines):
        return (line,)
    return line, (
        "WARNING: for the teacher, pairs of one identity are not more similar than pairs of two. Usual causes: labels "
        "that do not belong to the images, another colour order or preprocessing than the teacher's, a teacher with "
        "random weights. Check the set with tools/check_data.py --teacher"
    )
