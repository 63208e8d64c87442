"""Thresholds and TARs at fixed FARs and their intervals, compared with loops over scikit-learn's ROC curve."""

import time
import tracemalloc

import numpy as np
import pytest
from sklearn.metrics import roc_curve

from eval import bootstrap
from eval.bootstrap import operating_points
from eval.metrics import roc_curve as our_roc_curve
from eval.metrics import tar_at_far
from eval.verification import interval_metrics

FARS = (1e-2, 1e-3, 1e-4, 1e-5)


def drawn_pairs(count, seed=0, decimals=12):
    rng = np.random.default_rng(seed)
    is_same = rng.random(count) < 0.4
    return is_same, (0.15 * rng.standard_normal(count) + 0.3 * is_same).round(decimals)


def drawn_weights(is_same, identities):
    """How often each pair was drawn, [resamples, pairs]."""
    parts = [*bootstrap._resamples(is_same, identities)]
    weights = np.concatenate([part.times_drawn(np.arange(len(is_same))) for part in parts])
    assert np.concatenate([part.impostors for part in parts]).tolist() == weights[:, ~is_same].sum(1).tolist()
    return weights


def slow_point(is_same, scores, weights, far):
    """(threshold, TAR): the lowest score of the set that accepts at most the share `far` of the weighted impostors."""
    fpr, _, thresholds = roc_curve(is_same, scores, sample_weight=weights, drop_intermediate=False)
    allowed = [score for score in np.unique(scores) if fpr[thresholds >= score][-1] <= far + 1e-12]
    threshold = min(allowed, default=np.inf)
    accepted = is_same & (scores >= threshold)
    return threshold, weights[accepted].sum() / weights[is_same].sum()


@pytest.mark.parametrize("decimals", [2, 12])
@pytest.mark.parametrize("kind", ["pairs", "identities"])
def test_values_and_intervals_equal_those_of_a_loop_over_the_same_resamples(monkeypatch, decimals, kind):
    monkeypatch.setattr(bootstrap, "RESAMPLES", 40)
    monkeypatch.setattr(bootstrap, "RESAMPLES_AT_ONCE", 10)
    monkeypatch.setattr(bootstrap, "PAIRS_AT_ONCE", 37)
    rng = np.random.default_rng(2)
    is_same = rng.permutation(np.repeat([True, False], [400, 500]))  # so that 50 and 10 of them are exactly the FARs
    scores = (0.15 * rng.standard_normal(900) + 0.3 * is_same).round(decimals)
    first = rng.integers(50, 90, 900)
    second = np.where(is_same, first, 50 + (first - 50 + rng.integers(1, 40, 900)) % 40)
    identities = np.stack([first, second], axis=1) if kind == "identities" else None
    points = operating_points(is_same, scores, (0.1, 0.02), identities)
    resamples = list(drawn_weights(is_same, identities))
    assert len(resamples) == 40 and len({tuple(weights) for weights in resamples}) == 40
    for far, point in zip((0.1, 0.02), points, strict=True):
        value = slow_point(is_same, scores, np.ones(900), far)
        slow = [slow_point(is_same, scores, weights, far) for weights in resamples]
        for estimate, one, all_of_them in zip(point, value, zip(*slow, strict=True), strict=True):
            ordered = sorted(all_of_them)
            expected = one, ordered[0], ordered[38]  # the smallest value with at least 2.5 and 97.5 % at or below it
            assert estimate == pytest.approx(expected, abs=1e-12)
        tar, threshold = tar_at_far(our_roc_curve(is_same, scores, drop_intermediate=False), far)
        assert (point.threshold.value, point.tar.value) == (threshold, tar)


def test_resamples_draw_each_kind_of_pair_and_each_identity_as_often_as_the_set_has_them():
    is_same = np.arange(300) % 3 == 0
    weights = drawn_weights(is_same, None)
    assert weights.shape == (1000, 300)
    assert set(weights[:, is_same].sum(1)) == {100} and set(weights[:, ~is_same].sum(1)) == {200}
    assert weights.mean(0) == pytest.approx(1, abs=0.15) and weights.var(0).mean() == pytest.approx(1, abs=0.05)

    names = np.array([[7, 7], [7, 9], [9, 5], [5, 5]])  # three identities, so the number of times are 0 to 3
    weights = drawn_weights(names[:, 0] == names[:, 1], names)
    seven, five = weights[:, 0], weights[:, 3]
    assert (weights[:, 1] == seven * (3 - seven - five)).all()
    assert (weights[:, 2] == five * (3 - seven - five)).all()
    assert seven.mean() == pytest.approx(1, abs=0.1) and set(seven) == {0, 1, 2, 3}


def test_six_thousand_pairs_take_about_a_second_and_give_the_same_numbers_again():
    is_same, scores = drawn_pairs(6000)
    start = time.perf_counter()
    first = operating_points(is_same, scores, FARS)
    assert time.perf_counter() - start < 3  # 0.35 s on an idle core
    assert operating_points(is_same, scores, FARS) == first
    assert first[0].threshold.low < first[0].threshold.value < first[0].threshold.high
    assert first[0].tar.low < first[0].tar.value < first[0].tar.high


def test_many_pairs_of_known_identities_need_little_time_and_memory():
    rng = np.random.default_rng(6)
    count, people = 400_000, 500
    is_same = np.arange(count) % 8 == 0
    first = rng.integers(0, people, count)
    second = np.where(is_same, first, (first + rng.integers(1, people, count)) % people)
    scores = (0.15 * rng.standard_normal(count) + 0.5 * is_same).round(12)
    identities = np.stack([first, second], axis=1)
    tracemalloc.start()
    start = time.perf_counter()
    points = operating_points(is_same, scores, FARS[:3], identities)
    assert time.perf_counter() - start < 20  # 1 s on an idle core
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 150e6  # the weights of all pairs in 100 resamples alone would take 320 MB
    part, looked_at = next(bootstrap._resamples(is_same, identities)), []
    counting = part._replace(times_drawn=lambda pairs: looked_at.append(len(pairs)) or part.times_drawn(pairs))
    bootstrap._Curve(is_same, scores).points(counting, FARS[:3])
    assert sum(looked_at) < 0.2 * count  # the genuine pairs, and the impostor pairs with the highest scores
    fpr, tpr, thresholds = roc_curve(is_same, scores, drop_intermediate=False)
    for far, point in zip(FARS[:3], points, strict=True):
        last = np.flatnonzero(fpr <= far)[-1]
        tar, threshold = tpr[last], thresholds[last]
        assert (point.threshold.value, point.tar.value) == (threshold, pytest.approx(tar))
        assert point.threshold.low < threshold < point.threshold.high and point.tar.low < tar < point.tar.high


def test_what_the_pairs_cannot_support_is_null():
    cases = (10_000, 3, 2), (9999, 2, 1), (1000, 2, 1), (999, 1, 0), (100, 1, 0), (99, 0, 0)
    for impostors, values, intervals in cases:
        is_same = np.repeat([True, False], [500, impostors])
        scores = np.random.default_rng(0).random(len(is_same)) + is_same
        for column, point in enumerate(operating_points(is_same, scores, FARS)):
            for estimate in point:
                assert (estimate.value is not None) == (column < values)
                assert (estimate.low is not None) == (estimate.high is not None) == (column < intervals)
    for one_kind in (np.ones(5000, dtype=bool), np.zeros(5000, dtype=bool)):
        points = operating_points(one_kind, np.arange(5000.0), FARS)
        assert {number for point in points for estimate in point for number in estimate} == {None}
    # All impostor pairs have the highest score, so no threshold rejects 99 % of them.
    point = operating_points(np.repeat([True, False], 1000), np.repeat([0.1, 0.9], 1000), [0.01])[0]
    assert point == ((None, None, None), (0, 0, 0))


def test_intervals_hold_the_true_threshold_about_as_often_as_they_say(monkeypatch):
    """With ten expected false accepts, the fewest for which there is an interval."""
    monkeypatch.setattr(bootstrap, "RESAMPLES", 300)
    rng = np.random.default_rng(3)
    held = []
    for _ in range(150):
        is_same = np.repeat([True, False], [200, 1000])
        scores = np.where(is_same, 0.9 + 0.1 * rng.random(1200), rng.random(1200))  # the true threshold is 0.99
        (point,) = operating_points(is_same, scores, [0.01])
        held.append(point.threshold.low <= 0.99 <= point.threshold.high)
    assert 0.85 <= np.mean(held) <= 0.99


def test_pairs_of_few_identities_have_wider_intervals_than_independent_pairs():
    rng = np.random.default_rng(4)
    first = np.repeat(np.arange(30), 100)
    other = (first + rng.integers(1, 30, 3000)) % 30
    identities = np.concatenate([np.stack([first, first], 1), np.stack([first, other], 1)])
    is_same = np.repeat([True, False], 3000)
    ease = rng.normal(0, 0.1, 30)  # of recognising a person
    scores = np.where(is_same, 0.4, 0.0) + ease[identities].mean(1) + 0.1 * rng.standard_normal(6000)
    for independent, related in zip(
        operating_points(is_same, scores, [0.01])[0],
        operating_points(is_same, scores, [0.01], identities)[0],
        strict=True,
    ):
        assert related.value == independent.value
        assert related.high - related.low > 2 * (independent.high - independent.low)


def test_the_metrics_have_names_that_a_script_can_find():
    is_same, scores = drawn_pairs(6000)
    metrics = interval_metrics(is_same, scores, np.arange(12_000))
    values = [f"TAR_at_FAR_{far}" for far in FARS[2:]] + [f"thresh_at_FAR_{far}" for far in FARS]
    ends = [f"{kind}_at_FAR_{far}_{end}" for kind in ("TAR", "thresh") for far in FARS for end in ("low", "high")]
    assert set(metrics) == {"identities", *values, *ends}
    assert metrics["identities"] == 12_000 and "identities" not in interval_metrics(is_same, scores)
    assert metrics["thresh_at_FAR_0.01_low"] < metrics["thresh_at_FAR_0.01"] < metrics["thresh_at_FAR_0.01_high"]
    assert metrics["thresh_at_FAR_0.001"] is not None and metrics["thresh_at_FAR_0.001_low"] is None
    assert metrics["TAR_at_FAR_0.0001"] is None and metrics["thresh_at_FAR_1e-05_high"] is None
