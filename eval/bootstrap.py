"""Threshold and TAR at a FAR, with 95 % confidence intervals by bootstrap.

The resampled units are the identities if they are known, because pairs that share an identity are not independent:
a pair of two identities then counts as often as the product of the two numbers of times that they were drawn (Owen,
Ann. Appl. Stat. 1, 2007; Fogliato et al., IJCV 2024). Otherwise the genuine and the impostor pairs are resampled.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from scipy.sparse import csr_matrix

from eval.metrics import is_measurable
from eval.protocol import INTERVAL_ENDS, Display, Metrics

RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100
PAIRS_AT_ONCE = 8192  # 7 MB per array
SEED = 0
LOW, HIGH = 0.025, 0.975
# With fewer expected false accepts, intervals are too short. In drawn sets of 3,000 impostor pairs, the interval of the
# threshold holds the true one in 62 % of the sets with one false accept, in 81 to 94 % with three, in 92 to 96 % with
# ten, in 94 to 95 % with thirty. (It depends on how many genuine scores are near the threshold, not on the
# distribution of the scores.)
FALSE_ACCEPTS_FOR_INTERVAL = 10


class Estimate(NamedTuple):
    """A value and the ends of its 95 % interval; None where the pairs are too few, or where it is infinite."""

    value: float | None
    low: float | None
    high: float | None


class OperatingPoint(NamedTuple):
    """The lowest threshold that accepts at most a share FAR of the impostor pairs, and the TAR at this threshold.

    A pair is accepted if its score is at least the threshold.
    """

    threshold: Estimate
    tar: Estimate


class Resamples(NamedTuple):
    """R resamples of the pairs.

    times_drawn: positions of n pairs -> how often each resample has each of them, int [R, n]; impostors: the number of
    impostor pairs in each resample, int [R].
    """

    times_drawn: Callable[[np.ndarray], np.ndarray]
    impostors: np.ndarray


UNKNOWN = OperatingPoint(Estimate(None, None, None), Estimate(None, None, None))


def tar_name(far: float) -> str:
    """The result name of the TAR at a FAR."""
    return f"TAR_at_FAR_{far}"


def threshold_name(far: float) -> str:
    """The result name of the threshold at a FAR."""
    return f"thresh_at_FAR_{far}"


def interval_metrics(
    is_same: np.ndarray, scores: np.ndarray, fars: Sequence[float], identities: np.ndarray | None = None
) -> Metrics:
    """TAR_at_FAR_x and thresh_at_FAR_x for each of `fars`, and the ends of their intervals, _low and _high.

    The arguments are those of `operating_points`. With identities, the metric `identities` is their number. TARs are
    fractions. None where the impostor pairs are too few.
    """
    metrics: Metrics = {} if identities is None else {"identities": len(np.unique(identities))}
    for far, point in zip(fars, operating_points(is_same, scores, fars, identities), strict=True):
        for name, estimate in ((tar_name(far), point.tar), (threshold_name(far), point.threshold)):
            metrics |= zip((name, *(name + end for end in INTERVAL_ENDS)), estimate, strict=True)
    return metrics


def interval_displays(fars: Sequence[float]) -> dict[str, Display]:
    """How to display the metrics of `interval_metrics`."""
    displays = {"identities": Display(digits=0, unit="", better=None)}
    for far in fars:
        displays[tar_name(far)] = Display(100, far=far, has_interval=True)
        displays[threshold_name(far)] = Display(digits=4, unit="", better=None, far=far, has_interval=True)
        for name in (tar_name(far), threshold_name(far)):
            needed = dict(better=None, has_interval=False, false_accepts=FALSE_ACCEPTS_FOR_INTERVAL)
            displays |= {name + end: replace(displays[name], **needed) for end in INTERVAL_ENDS}
    return displays


def operating_points(
    is_same: np.ndarray, scores: np.ndarray, fars: Sequence[float], identities: np.ndarray | None = None
) -> list[OperatingPoint]:
    """The operating point at each of `fars`.

    is_same: bool [P]; scores: [P], higher for genuine pairs; identities: int [P, 2], the identities of the two images
    of each pair, or None. Values need at least one expected false accept (`is_measurable`), intervals at least ten.
    The same arguments give the same intervals.
    """
    impostors = np.count_nonzero(~is_same)
    if impostors in (0, len(is_same)):
        return [UNKNOWN] * len(fars)
    curve = _Curve(is_same, scores)
    the_set = Resamples(lambda pairs: np.ones((1, len(pairs)), dtype=np.int64), np.array([impostors]))
    values = curve.points(the_set, fars)[0]  # [FARs, 2]
    measurable = [is_measurable(far, impostors) for far in fars]
    wide_enough = [is_measurable(far, impostors, FALSE_ACCEPTS_FOR_INTERVAL) for far in fars]
    ends = np.full((2, len(fars), 2), np.nan)
    if any(wide_enough):
        resampled = np.concatenate([curve.points(part, fars) for part in _resamples(is_same, identities)])
        # A value of a resample, not one between two of them, because some may be infinite.
        ends[:, wide_enough] = np.quantile(resampled[:, wide_enough], [LOW, HIGH], axis=0, method="inverted_cdf")
    values[~np.array(measurable)] = np.nan
    return [
        OperatingPoint(
            *(Estimate(*map(_finite, (value, *interval))) for value, interval in zip(point, pair, strict=True))
        )
        for point, pair in zip(values, ends.transpose(1, 2, 0), strict=True)
    ]


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


class _Curve:
    """The pairs in the order of their scores, for many resamples."""

    def __init__(self, is_same: np.ndarray, scores: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        self._genuine, self._impostors = order[is_same[order]], order[~is_same[order]]  # pairs, by descending score
        self._scores = scores[order]
        at = scores[self._impostors]
        # For each impostor pair: how many pairs, and how many genuine pairs, have a higher score.
        self._above = np.searchsorted(-self._scores, -at, side="left")
        self._genuine_above = np.searchsorted(-scores[self._genuine], -at, side="left")

    def points(self, resamples: Resamples, fars: Sequence[float]) -> np.ndarray:
        """(threshold, TAR) for each resample and FAR, float64 [R, FARs, 2].

        A threshold is infinite if no score of the set is high enough.
        """
        # The first impostor pair that must not be accepted, and so no pair of the same or of a lower score.
        first = np.minimum(self._acceptable(resamples, fars), len(self._impostors) - 1)  # [R, FARs]
        accepted, total = self._genuine_among_first(resamples, self._genuine_above[first])
        thresholds = np.append(np.inf, self._scores)  # by the number of accepted pairs
        return np.stack([thresholds[self._above[first]], accepted / np.maximum(total, 1)[:, None]], axis=2)

    def _acceptable(self, resamples: Resamples, fars: Sequence[float]) -> np.ndarray:
        """How many impostor pairs of the set, by descending score, may be accepted: int [R, FARs].

        Pairs with lower scores than needed are not looked at, because there may be millions of them.
        """
        count = np.zeros((len(resamples.impostors), len(fars)), dtype=np.int64)
        accepted = np.zeros((len(resamples.impostors), 1), dtype=np.int64)
        for start in range(0, len(self._impostors), PAIRS_AT_ONCE):
            times_drawn = resamples.times_drawn(self._impostors[start : start + PAIRS_AT_ONCE])
            accepted = accepted[:, -1:] + times_drawn.cumsum(axis=1)  # [R, n]
            far = accepted / np.maximum(resamples.impostors, 1)[:, None]
            for column, limit in enumerate(fars):
                count[:, column] += (far <= limit).sum(axis=1)
            if (far[:, -1] > max(fars)).all():
                break
        return count

    def _genuine_among_first(self, resamples: Resamples, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many genuine pairs each resample has among the first `counts` [R, FARs] of the set, by descending score:
        int [R, FARs]; and how many in all: int [R]."""
        accepted, total = np.zeros_like(counts), np.zeros(len(counts), dtype=np.int64)
        for start in range(0, len(self._genuine), PAIRS_AT_ONCE):
            times_drawn = resamples.times_drawn(self._genuine[start : start + PAIRS_AT_ONCE])
            among_first = np.pad(times_drawn.cumsum(axis=1), ((0, 0), (1, 0)))  # [R, n + 1], of the first 0 to n
            within = np.clip(counts - start, 0, times_drawn.shape[1])
            accepted += np.take_along_axis(among_first, within, axis=1)
            total += among_first[:, -1]
        return accepted, total


def _resamples(is_same: np.ndarray, identities: np.ndarray | None) -> Iterator[Resamples]:
    """RESAMPLES resamples in parts of RESAMPLES_AT_ONCE."""
    rng = np.random.default_rng(SEED)
    resample = _resample_pairs(is_same) if identities is None else _resample_identities(is_same, identities)
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        yield resample(rng)


def _resample_pairs(is_same: np.ndarray) -> Callable[[np.random.Generator], Resamples]:
    def resample(rng: np.random.Generator) -> Resamples:
        times_drawn = np.empty((RESAMPLES_AT_ONCE, len(is_same)), dtype=np.int64)
        for members in (is_same, ~is_same):
            times_drawn[:, members] = _times_drawn(rng, np.count_nonzero(members))
        return Resamples(lambda pairs: times_drawn[:, pairs], np.full(RESAMPLES_AT_ONCE, np.count_nonzero(~is_same)))

    return resample


def _resample_identities(is_same: np.ndarray, identities: np.ndarray) -> Callable[[np.random.Generator], Resamples]:
    names, numbers = np.unique(identities, return_inverse=True)
    first, second = numbers.reshape(-1, 2).T
    entries = (np.ones(np.count_nonzero(~is_same), dtype=np.int64), (first[~is_same], second[~is_same]))
    impostors = csr_matrix(entries, shape=(len(names), len(names)))  # the number of pairs of each two identities

    def resample(rng: np.random.Generator) -> Resamples:
        drawn = _times_drawn(rng, len(names))  # [R, identities]

        def times_drawn(pairs: np.ndarray) -> np.ndarray:
            once = drawn[:, first[pairs]]
            return np.where(is_same[pairs], once, once * drawn[:, second[pairs]])

        return Resamples(times_drawn, (drawn @ impostors * drawn).sum(axis=1))

    return resample


def _times_drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of `count` units is among `count` drawn ones, int [RESAMPLES_AT_ONCE, count]."""
    drawn = rng.integers(count, size=(RESAMPLES_AT_ONCE, count)) + count * np.arange(RESAMPLES_AT_ONCE)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES_AT_ONCE * count).reshape(RESAMPLES_AT_ONCE, count)
