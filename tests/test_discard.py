"""Error-versus-discard curves, compared with a slow loop in plain Python."""

import numpy as np
import pytest
from scored_sets import scored_pairs

from eval.discard import area_up_to, discard_curve
from eval.embeddings import Embeddings
from eval.report.plots import set_plots
from eval.verification import PROTOCOL, discard_curves


def slow_curve(is_missed, quality):
    """[(discarded share, error of the others)]: the pairs of the lowest quality leave together."""
    left = sorted(zip(quality, is_missed, strict=True), key=lambda pair: pair[0])
    total, points = len(left), []
    while left:
        points.append((1 - len(left) / total, sum(missed for _, missed in left) / len(left)))
        lowest = left[0][0]
        left = [pair for pair in left if pair[0] != lowest]
    return points


def slow_area(points, limit, parts):
    """The mean height of the steps at the middles of `parts` equal parts, times `limit`."""
    heights = [
        [error for discarded, error in points if discarded <= (part + 0.5) / parts * limit][-1] for part in range(parts)
    ]
    return limit * sum(heights) / parts


@pytest.mark.parametrize("decimals", [0, 1, 9])
def test_the_curve_and_its_area_equal_those_of_a_slow_loop(decimals):
    rng = np.random.default_rng(decimals)
    quality = rng.normal(10, 2, 200).round(decimals)
    is_missed = rng.random(200) < 1 / quality
    curve, slow = discard_curve(is_missed, quality), slow_curve(is_missed, quality)
    assert np.stack(curve, 1) == pytest.approx(np.array(slow), abs=1e-12)
    for limit in (0.3, 0.95, 1.0):
        # Parts of 1/200 of all pairs, cut in four, so that every step ends where a part ends.
        assert area_up_to(curve, limit) == pytest.approx(slow_area(slow, limit, round(800 * limit)), abs=1e-12)


def test_extreme_curves():
    quality = np.arange(100.0)
    assert area_up_to(discard_curve(quality < 10, quality)) == pytest.approx(
        sum((10 - k) / (100 - k) / 100 for k in range(10))
    )
    assert area_up_to(discard_curve(quality >= 0, quality)) == pytest.approx(0.3)
    equal = discard_curve(quality < 10, np.ones(100))  # nothing can be discarded before everything is
    assert (equal.discarded.tolist(), equal.error.tolist()) == ([0], [0.1])
    assert area_up_to(equal) == pytest.approx(0.03)


class Pairs:
    identities = None

    def __init__(self, is_same):
        self.is_same = is_same


def test_a_verification_set_is_discarded_by_the_smaller_norm_at_the_threshold_of_all_pairs():
    rng = np.random.default_rng(0)
    is_same = np.arange(800) % 2 == 0
    first = rng.standard_normal((800, 16))
    second = rng.standard_normal((800, 16)) + np.where(is_same, 1.2, 0.0)[:, None] * first
    features = np.stack([first, second], 1).reshape(1600, 16).astype(np.float32)
    norms = rng.uniform(5, 15, 1600).astype(np.float32)
    metrics, arrays = PROTOCOL.score(Pairs(is_same), Embeddings(features, norms))

    unit = features.astype(np.float64) / np.linalg.norm(features.astype(np.float64), axis=1, keepdims=True)
    cosine = (unit[0::2] * unit[1::2]).sum(1)
    impostor = sorted(cosine[~is_same], reverse=True)
    missed = cosine[is_same] <= impostor[4]  # FAR 1e-2 allows 4 of 400
    slow = slow_curve(missed.tolist(), np.minimum(norms[0::2], norms[1::2])[is_same].tolist())
    assert metrics["EDC_area_at_FAR_0.01"] == pytest.approx(slow_area(slow, 0.3, 480), abs=1e-12)
    assert slow[0][1] == pytest.approx(1 - metrics["TAR_at_FAR_0.01"])
    assert metrics["EDC_area_at_FAR_0.001"] is None  # 400 impostor pairs are too few
    assert list(discard_curves(arrays)) == [0.01]

    axes = set_plots("verification", "lfw", metrics, arrays)["discard_lfw"].figure.axes[0]
    (line,) = axes.lines
    assert line.get_drawstyle() == "steps-post"
    assert line.get_xydata() == pytest.approx(100 * np.array(slow), abs=1e-9)
    assert f"area {100 * metrics['EDC_area_at_FAR_0.01']:.4f} %" in line.get_label()


def test_sets_without_a_measurable_far_have_no_curve():
    few = scored_pairs(20)
    assert discard_curves(few) == {}
    assert discard_curves({**scored_pairs(1000), "is_same": np.zeros(1000, dtype=bool)}) == {}
    axes = set_plots("verification", "lfw", {}, few)["discard_lfw"].figure.axes[0]
    assert [line.get_label() for line in axes.lines] == ["not measurable: too few impostor pairs"]
