"""The mean teacher embedding of each class of a training set, from embeddings in files."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from data.dataset import FaceDataset
from data.teacher_cache import EmbeddingError, TeacherEmbeddings
from utils.distributed import on_all_ranks, rank, sum_over_ranks, world_size

CHUNK = 4096  # images at a time: their embeddings take 34 MB per view in float64, for 512 dimensions


def class_means(embeddings: TeacherEmbeddings, dataset: FaceDataset, size: int, owned: range | None = None) -> Tensor:
    """The mean of the unit embeddings of each class, over its images and their mirror images: float32 [n, size].

    owned: the classes that this rank needs, if the ranks split all classes among themselves; None: each needs all.
    A class without images has zeros. Every rank must call this, and each reads the embeddings of other classes. They
    are summed in float64, in the order of the images, so the result does not depend on the number of ranks. Raises
    EmbeddingError if an embedding is not finite, and DataError if a label cannot be read.
    """
    labels, classes = _read_labels(dataset), _share(dataset.num_classes) if owned is None else owned
    means = on_all_ranks(lambda: _means(embeddings, labels, classes, size))
    if owned is not None:
        return means
    of_all = torch.zeros(dataset.num_classes, size)
    of_all[classes.start : classes.stop] = means
    sum_over_ranks(of_all)
    return of_all


def _share(count: int) -> range:
    """This rank's share of `count` things."""
    return range(count * rank() // world_size(), count * (rank() + 1) // world_size())


def _read_labels(dataset: FaceDataset) -> np.ndarray:
    """The labels of all images, int64 [N]. Each rank reads its share of them."""
    labels, share = torch.zeros(len(dataset), dtype=torch.int64), _share(len(dataset))

    def read() -> None:
        for positions in _chunks(np.arange(share.start, share.stop), "labels of all images"):
            labels[positions] = torch.from_numpy(dataset.read_labels(positions))

    on_all_ranks(read)
    sum_over_ranks(labels)
    return labels.numpy()


def _means(embeddings: TeacherEmbeddings, labels: np.ndarray, classes: range, size: int) -> Tensor:
    sums = torch.zeros(len(classes), size, dtype=torch.float64)
    own = np.flatnonzero((labels >= classes.start) & (labels < classes.stop))
    for positions in _chunks(own, "mean embeddings of the classes"):
        flips = (np.full(len(positions), flip) for flip in (False, True))
        image, mirrored = (F.normalize(embeddings.rows(positions, flip).double(), eps=1e-12) for flip in flips)
        sums.index_add_(0, torch.from_numpy(labels[positions] - classes.start), image + mirrored)
    if not sums.isfinite().all():
        raise EmbeddingError("teacher_embeddings: not all embeddings are finite; remove the file to make it again")
    counts = np.bincount(labels[own] - classes.start, minlength=len(classes))
    return (sums / torch.from_numpy(2 * counts.clip(1))[:, None]).float()


def _chunks(positions: np.ndarray, name: str) -> tqdm:
    """Parts of `positions` of up to CHUNK each, with a progress bar."""
    parts = [positions[start : start + CHUNK] for start in range(0, len(positions), CHUNK)]
    return tqdm(parts, name, disable=rank() != 0)
