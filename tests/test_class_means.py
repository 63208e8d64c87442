"""The mean teacher embedding of each class, on one and several ranks."""

import numpy as np
import pytest
import torch
from gloo_ranks import on_ranks
from slow_heads import slow_means

from data import class_means as module
from data.class_means import class_means
from data.teacher_cache import EmbeddingError, TeacherEmbeddings
from heads.sharded import owned_classes

IMAGES, CLASSES, SIZE = 150, 11, 24
EMPTY = [0, 7]  # classes without images
WORLDS = (1, 2, 3)


class RandomSet(TeacherEmbeddings):
    """Labels in random order, and embeddings, float16 [N, 2, D], of very different lengths."""

    num_classes = CLASSES

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.choice(np.setdiff1d(np.arange(CLASSES), EMPTY), IMAGES)
        lengths = 10.0 ** rng.uniform(-1, 2, (IMAGES, 2, 1))
        self.stored = (lengths * rng.standard_normal((IMAGES, 2, SIZE))).astype(np.float16)
        self.longest = 0

    def __len__(self) -> int:
        return IMAGES

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self.labels[positions]

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        self.longest = max(self.longest, len(positions))
        return torch.from_numpy(self.stored[positions, flips.astype(int)])


def means_on_rank() -> tuple:
    """The means of all classes, those of this rank's own, and the most rows read at once."""
    module.CHUNK = 8
    both = RandomSet()
    means = [class_means(both, both, SIZE, owned) for owned in (None, owned_classes(CLASSES))]
    return *means, both.longest


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> dict[int, list[tuple]]:
    """Number of ranks -> the results of each rank."""
    return on_ranks(means_on_rank, WORLDS, tmp_path_factory.mktemp("means"))


@pytest.mark.parametrize("world", WORLDS)
def test_the_means_are_those_of_float64_and_bit_equal_for_any_number_of_ranks(results, world):
    both = RandomSet()
    of_one = class_means(both, both, SIZE)  # in one chunk
    assert both.longest == IMAGES and not of_one[EMPTY].any()
    expected = slow_means(both.labels, both.stored, CLASSES)
    assert abs(of_one.numpy() - expected).max() < 1e-7
    of_all, of_own, longest = zip(*results[world], strict=True)
    assert all(torch.equal(means, of_one) for means in of_all) and torch.equal(torch.cat(of_own), of_one)
    assert max(longest) == 8


def test_embeddings_that_are_not_finite_are_refused():
    both = RandomSet()
    both.stored[3, 1, 2] = np.inf
    with pytest.raises(EmbeddingError, match="not all embeddings are finite"):
        class_means(both, both, SIZE)
