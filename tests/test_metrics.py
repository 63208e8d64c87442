"""The shared arithmetic, compared with scikit-learn, with counting in plain Python and with closed formulas."""

import itertools

import numpy as np
import pytest
from scipy.stats import binom
from sklearn import metrics as sklearn_metrics
from sklearn.model_selection import KFold

from eval import metrics
from eval.metrics import (
    area_under,
    contiguous_folds,
    equal_error_rate,
    lengths,
    mcnemar,
    rank_k_rate,
    roc_corners,
    roc_curve,
    tar_at_far,
    tpr_nearest_fpr,
    unit_length,
    wilson_interval,
)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_unit_length_does_not_depend_on_the_chunk_size(dtype, monkeypatch):
    embeddings = np.random.default_rng(0).standard_normal((50, 7)).astype(dtype)
    expected = embeddings.astype(np.float64) / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    for rows in (16_384, 3):
        monkeypatch.setattr(metrics, "ROWS_PER_CHUNK", rows)
        unit = unit_length(embeddings)
        assert unit.dtype == np.float64 and np.array_equal(unit, expected)
    assert np.shares_memory(embeddings, unit) is False


def test_an_embedding_of_length_zero_stays_zero():
    assert unit_length(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [[0, 0], [0.6, 0.8]]
    assert lengths(np.array([[0.0, 0.0], [3.0, 4.0]])).tolist() == [1e-12, 5]


@pytest.mark.parametrize("drop_intermediate", [True, False])
@pytest.mark.parametrize("distinct", [1, 2, 3, 10, 100, 10**9])
def test_the_roc_curve_equals_that_of_scikit_learn(distinct, drop_intermediate):
    generator = np.random.default_rng(distinct)
    for _ in range(100):
        size = generator.integers(2, 60)
        label = generator.permutation(np.append([0, 1], generator.integers(0, 2, size - 2)))
        scores = generator.integers(0, distinct, size) / distinct - 0.5
        expected = sklearn_metrics.roc_curve(label, scores, drop_intermediate=drop_intermediate)
        for part, expected_part in zip(roc_curve(label, scores, drop_intermediate), expected, strict=True):
            np.testing.assert_array_equal(part, expected_part)


def test_the_roc_curve_of_one_class_has_rate_0_for_the_other():
    curve = roc_curve(np.ones(3, dtype=bool), np.array([0.1, 0.2, 0.3]), drop_intermediate=False)
    assert curve.fpr.tolist() == [0, 0, 0, 0] and curve.tpr.tolist() == [0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize("decimals", [1, 2, 3, 12])
def test_the_nearest_point_is_that_of_a_search_of_scikit_learns_curve(decimals):
    generator = np.random.default_rng(decimals)
    label = (generator.random(20_000) < 0.01).astype(np.int64)
    scores = (generator.normal(size=20_000) / 5 + label).round(decimals)
    for fpr in (1e-6, 1e-4, 1e-3, 0.1, 0.5):
        best = None
        for point in zip(*sklearn_metrics.roc_curve(label, scores), strict=True):
            if best is None or abs(point[0] - fpr) <= abs(best[0] - fpr):
                best = point
        assert tpr_nearest_fpr(roc_curve(label, scores), fpr) == (best[1], best[2])


@pytest.mark.parametrize("seed", range(6))
def test_tar_auc_and_eer_equal_those_of_counting(seed):
    rng = np.random.default_rng(seed)
    is_same = np.append([True, False], rng.random(1198) < 0.4)
    scores = (rng.standard_normal(1200) + 1.5 * is_same).round(1 if seed % 2 else 9)  # with many ties, and with none
    genuine, impostor = scores[is_same], scores[~is_same]
    points = [(np.mean(impostor >= t), np.mean(genuine >= t)) for t in [np.inf, *np.unique(scores)[::-1]]]
    curve = roc_curve(is_same, scores, drop_intermediate=False)
    for wanted in (1e-3, 1e-2):
        assert tar_at_far(curve, wanted)[0] == max(tar for far, tar in points if far <= wanted)
    wins = [np.mean((value > impostor) + 0.5 * (value == impostor)) for value in genuine]
    assert area_under(curve) == pytest.approx(np.mean(wins), abs=1e-12)
    crossings = []  # of the lines between the points with FAR = 1 - TAR, found by bisection
    for (far_0, tar_0), (far_1, tar_1) in itertools.pairwise(points):
        if far_0 + tar_0 < 1 <= far_1 + tar_1:
            low, high = 0.0, 1.0
            for _ in range(60):
                middle = (low + high) / 2
                total = far_0 + middle * (far_1 - far_0) + tar_0 + middle * (tar_1 - tar_0)
                low, high = (middle, high) if total < 1 else (low, middle)
            crossings.append(far_0 + low * (far_1 - far_0))
    assert [equal_error_rate(curve)] == pytest.approx(crossings, abs=1e-12)


def test_tar_at_far_allows_exactly_the_stated_share_of_impostor_pairs():
    """Of 1,000 impostor pairs, FAR 1e-3 allows one, which scores 0.8; the next one scores 0.5."""
    impostor, genuine = np.append([0.8, 0.5], np.linspace(0, 0.1, 998)), np.array([0.9, 0.7, 0.6, 0.4])
    is_same = np.repeat([False, True], [1000, 4])
    curve = roc_curve(is_same, np.append(impostor, genuine), drop_intermediate=False)
    assert [tar_at_far(curve, far)[0] for far in (0.0, 0.0005, 0.001, 0.0019, 0.002)] == [0.25, 0.25, 0.75, 0.75, 1.0]


@pytest.mark.parametrize("decimals", [1, 12])
def test_roc_corners_give_the_largest_tar_at_every_far(decimals):
    rng = np.random.default_rng(0)
    label = np.append([True, False], rng.random(498) < 0.1)
    scores = (rng.standard_normal(500) + label).round(decimals)
    far, tar = roc_corners(label, scores)
    assert len(far) <= label.sum() + 2 and (far[0], far[-1], tar[-1]) == (0, 1, 1)
    assert (np.diff(far) > 0).all() and (np.diff(tar) >= 0).all()
    fpr, tpr, _ = sklearn_metrics.roc_curve(label, scores, drop_intermediate=False)
    for wanted in np.linspace(0, 1, 201):
        assert tar[far <= wanted][-1] == tpr[fpr <= wanted].max()


@pytest.mark.parametrize("ranks", [[1], [2], [1, 2, 3, 4, 5, 6, 7]])
def test_a_rank_k_rate_is_the_share_of_ranks_up_to_k(ranks):
    for k in (1, 5):
        assert rank_k_rate(np.array(ranks), k) == pytest.approx(100 * sum(r <= k for r in ranks) / len(ranks))


def test_the_ends_of_an_interval_solve_wilsons_equation():
    """The equation is (p - hits / count)^2 = z^2 p (1 - p) / count."""
    hits, counts = np.array([0, 3, 50, 99, 100]), np.array([100, 100, 50, 100, 100])
    low, high = wilson_interval(hits, counts)
    for end in (low, high):
        np.testing.assert_allclose((end - hits / counts) ** 2, 1.959964**2 * end * (1 - end) / counts, atol=1e-12)
    assert (low <= hits / counts + 1e-12).all() and (high >= hits / counts - 1e-12).all() and (low < high).all()


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (9, 1), (5, 5), (3, 20), (60, 31)])
def test_mcnemar_is_the_two_sided_sign_test_on_the_pairs_that_differ(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    total = only_first + only_second
    tails = 2 * sum(binom.pmf(k, total, 0.5) for k in range(min(only_first, only_second) + 1))
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(min(1, tails)))


@pytest.mark.parametrize("count", [10, 19, 107, 1203])
def test_folds_equal_those_of_scikit_learns_kfold(count):
    expected = np.empty(count)
    for fold, (_, test) in enumerate(KFold(10, shuffle=False).split(np.empty(count))):
        expected[test] = fold
    np.testing.assert_array_equal(contiguous_folds(count, 10), expected)
