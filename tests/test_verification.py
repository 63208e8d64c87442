"""Pair verification, compared with the protocol written out in plain Python."""

import math
import time

import numpy as np
import pytest
from scored_sets import scored_pairs

from data.bin_set import VerificationSet
from eval.metrics import contiguous_folds
from eval.verification import (
    FOLDS,
    PROTOCOL,
    evaluate_pairs,
    one_sided_folds,
    roc_metrics,
    score_pairs,
    squared_distances,
    worst_errors,
)


def slow_accuracy(embeddings, is_same):
    """Ten-fold accuracy and its deviation, pair by pair and threshold by threshold in plain Python."""

    def unit(row):
        length = math.sqrt(math.fsum(value * value for value in row))
        return [value / length for value in row]

    rows = [unit(row) for row in embeddings.astype(np.float64).tolist()]
    count = len(is_same)
    distances = [
        math.fsum((a - b) ** 2 for a, b in zip(rows[2 * i], rows[2 * i + 1], strict=True)) for i in range(count)
    ]
    sizes = [count // 10 + (1 if fold < count % 10 else 0) for fold in range(10)]
    accuracies, start = [], 0
    for size in sizes:
        test = range(start, start + size)
        start += size
        train = [i for i in range(count) if i not in test]
        best, most = None, -1
        for hundredths in range(400):
            right = sum((distances[i] < hundredths / 100) == bool(is_same[i]) for i in train)
            if right > most:
                best, most = hundredths / 100, right
        accuracies.append(sum((distances[i] < best) == bool(is_same[i]) for i in test) / size)
    mean = sum(accuracies) / 10
    return mean, math.sqrt(sum((value - mean) ** 2 for value in accuracies) / 10)


def random_pairs(count, size, seed):
    """Embeddings of very different lengths; genuine pairs are nearer than impostors, with much overlap."""
    rng = np.random.default_rng(seed)
    is_same = rng.random(count) < 0.5
    first = rng.standard_normal((count, size))
    second = rng.standard_normal((count, size)) + np.where(is_same, 0.5, 0.0)[:, None] * first
    embeddings = np.stack([first, second], axis=1).reshape(2 * count, size) * rng.uniform(0.1, 9, (2 * count, 1))
    return embeddings.astype(np.float32), is_same


def pairs_at(distances):
    """Embeddings in the plane whose pairs have the given squared distances."""
    angles = 2 * np.arcsin(np.sqrt(np.array(distances)) / 2)
    second = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return np.stack([np.tile([1.0, 0.0], (len(angles), 1)), second], axis=1).reshape(-1, 2)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("count", [10, 100, 117])
def test_the_metrics_equal_those_of_the_protocol_in_plain_python(count, seed):
    embeddings, is_same = random_pairs(count, 16, seed)
    mean, deviation = slow_accuracy(embeddings, is_same)
    metrics = evaluate_pairs(embeddings, is_same)
    assert metrics["Accuracy-Flip"] == pytest.approx(mean, abs=1e-12)
    assert metrics["Accuracy-Std"] == pytest.approx(deviation, abs=1e-12)
    assert count == 10 or 0.5 < mean < 1


@pytest.mark.parametrize("seed", range(3))
def test_a_pair_is_decided_by_the_threshold_of_its_fold(seed):
    embeddings, is_same = random_pairs(107, 16, seed)
    metrics, arrays = score_pairs(embeddings, is_same)
    unit = embeddings / np.linalg.norm(embeddings.astype(np.float64), axis=1, keepdims=True)
    cosines = (unit[0::2] * unit[1::2]).sum(1)
    assert arrays["score"] == pytest.approx(cosines, abs=1e-12)
    fold = np.repeat(np.arange(10), [11] * 7 + [10] * 3)
    assert arrays["decision"].tolist() == (cosines > arrays["threshold"][fold]).tolist()
    right = arrays["decision"] == arrays["is_same"]
    assert metrics["Accuracy-Flip"] == pytest.approx(np.mean([right[fold == f].mean() for f in range(10)]))


@pytest.mark.parametrize("seed", range(4))
def test_the_metrics_equal_those_of_the_protocol_with_many_equal_distances(seed):
    rng = np.random.default_rng(seed)
    distances = rng.choice([0.105, 0.505, 0.995, 1.505, 3.005], 103)
    is_same = rng.random(103) < 1 - distances / 4
    embeddings = pairs_at(distances)
    metrics = evaluate_pairs(embeddings, is_same)
    assert (metrics["Accuracy-Flip"], metrics["Accuracy-Std"]) == pytest.approx(slow_accuracy(embeddings, is_same))


def test_the_first_of_equally_good_thresholds_is_used():
    # Every threshold from 0.31 to 2.90 separates the pairs, except one genuine pair of fold 0 at 1.0, which the first
    # of these thresholds rejects.
    distances, is_same = [0.305, 2.905] * 50, [True, False] * 50
    distances[0] = 1.005
    metrics = evaluate_pairs(pairs_at(distances), is_same)
    assert metrics["Accuracy-Flip"] == pytest.approx((0.9 + 9) / 10)
    assert metrics["Accuracy-Std"] == pytest.approx(0.03)


def test_a_pair_is_genuine_only_below_the_threshold():
    # Equal embeddings have distance 0, which is not below threshold 0.00 but below 0.01.
    embeddings = np.repeat(np.random.default_rng(0).standard_normal((20, 8)), 2, axis=0)
    for is_same in ([True] * 20, [False] * 20):
        metrics = evaluate_pairs(embeddings, is_same)
        assert (metrics["Accuracy-Flip"], metrics["Accuracy-Std"]) == (1, 0)


def test_the_lengths_of_embeddings_do_not_matter():
    embeddings, is_same = random_pairs(60, 12, 3)
    lengths = np.random.default_rng(1).uniform(0.01, 100, (120, 1))
    assert evaluate_pairs(embeddings * lengths, is_same) == pytest.approx(evaluate_pairs(embeddings, is_same))


def test_six_thousand_pairs_are_scored_within_a_second():
    embeddings, is_same = random_pairs(6000, 512, 0)
    times = []
    for _ in range(3):
        start = time.perf_counter()
        evaluate_pairs(embeddings, is_same)
        times.append(time.perf_counter() - start)
    assert min(times) < 1


@pytest.mark.parametrize(("rows", "pairs"), [(18, 9), (0, 0), (40, 10), (39, 20), (20, 20)])
def test_too_few_pairs_and_unequal_numbers_of_rows_are_refused(rows, pairs):
    with pytest.raises(ValueError, match=rf"{rows} embeddings for {pairs} pairs"):
        evaluate_pairs(np.ones((rows, 4)), np.ones(pairs, dtype=bool))


def test_an_embedding_of_length_zero_stays_at_zero():
    distances = squared_distances(np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 0.0], [0.0, 0.0]]))
    assert distances.dtype == np.float64
    assert distances.tolist() == pytest.approx([1.0, 0.0])


def test_perfectly_separated_pairs_have_no_equal_error():
    metrics = roc_metrics(np.array([True, False] * 50), np.array([0.6, 0.5] * 50))
    assert metrics == {"TAR_at_FAR_0.001": 1, "TAR_at_FAR_0.01": 1, "AUC": 1, "EER": 0}


def test_pairs_of_one_kind_have_no_roc_metrics():
    assert set(roc_metrics(np.ones(10, dtype=bool), np.arange(10)).values()) == {None}


@pytest.mark.parametrize(
    ("is_same", "folds"),
    [
        ([True, False] * 10, []),
        ([True, True, False, False] * 5, list(range(1, 11))),
        ([True, False] * 9 + [True, True], [10]),
        ([True] * 20, list(range(1, 11))),
        ([False] * 3 + [True, False] * 9, [1]),  # the first fold has three pairs
    ],
)
def test_folds_with_one_kind_of_pair_are_found_and_cause_a_warning(is_same, folds):
    assert one_sided_folds(np.array(is_same)) == folds
    warnings = PROTOCOL.warn(VerificationSet("pairs.bin", [], np.array(is_same)))
    assert len(warnings) == bool(folds)
    if folds:
        assert f"{len(folds)} of 10 folds hold only genuine or only impostor pairs" in warnings[0]
        assert f"(fold {', '.join(map(str, folds))})" in warnings[0] and "in turn" in warnings[0]


def test_the_worst_errors_are_farthest_from_the_threshold_of_their_fold():
    arrays = scored_pairs()
    thresholds = arrays["threshold"][contiguous_folds(1003, FOLDS)]
    rejected, accepted = [], []
    for number in range(1003):
        margin = arrays["score"][number] - thresholds[number]
        if arrays["is_same"][number] and not arrays["decision"][number]:
            rejected.append((margin, number))
        if not arrays["is_same"][number] and arrays["decision"][number]:
            accepted.append((-margin, number))
    assert len(rejected) > 10 and len(accepted) > 10
    for errors, slow in zip(worst_errors(arrays, 10), (rejected, accepted), strict=True):
        assert errors.tolist() == [number for _, number in sorted(slow)[:10]]
    assert [len(errors) for errors in worst_errors(arrays, 10**6)] == [len(rejected), len(accepted)]
    assert [len(errors) for errors in worst_errors({**arrays, "decision": arrays["is_same"]})] == [0, 0]
