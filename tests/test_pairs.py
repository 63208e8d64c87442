"""Genuine and impostor pairs sampled by label, and the test of the difference of their cosines."""

import numpy as np

from data.pairs import sample_pairs, significantly_higher


def test_pairs_follow_the_labels_and_no_image_is_used_twice():
    rng = np.random.default_rng(0)
    for identities in (1, 2, 3, 40, 5000):
        labels, positions = rng.integers(0, identities, 300), np.sort(rng.permutation(10_000)[:300])
        label = dict(zip(positions, labels, strict=True))
        same, different = sample_pairs(positions, labels, 50, rng)
        assert len(np.unique(same)) == 2 * len(same) <= 100
        assert all(label[a] == label[b] for a, b in same) and all(label[a] != label[b] for a, b in different)
        assert set(different.ravel()) <= set(same.ravel())
        several = (np.unique(labels, return_counts=True)[1] >= 2).sum()
        assert len({label[a] for a, _ in same}) == min(several, 50)
        assert len(different) >= len(same) // 2 or identities == 1
    assert [len(kind) for kind in sample_pairs(np.arange(0), np.arange(0), 50, rng)] == [0, 0]


def test_a_difference_by_chance_is_not_significant():
    rng = np.random.default_rng(0)
    chance = sum(significantly_higher(*rng.normal(0, 1, (2, 32))) for _ in range(500))
    assert chance <= 3
    assert significantly_higher(rng.normal(2, 1, 32), rng.normal(0, 1, 32))
    assert not significantly_higher(np.full(3, np.nan), np.zeros(3)) and not significantly_higher(
        np.zeros(0), np.zeros(3)
    )
