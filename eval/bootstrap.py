"""Threshold and TAR at a FAR, with 95 % confidence intervals by bootstrap.

The resampled units are the identities if they are known, because pairs that share an identity are not independent:
a pair of two identities then counts as often as the product of the two numbers of times that they were drawn (Owen,
Ann. Appl. Stat. 1, 2007; Fogliato et al., IJCV 2024). Otherwise the genuine and the impostor pairs are resampled.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from eval.metrics import is_measurable

RESAMPLES = 1000
RESAMPLES_AT_ONCE = 100  # 6,000 pairs: 5 MB per array
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


UNKNOWN = OperatingPoint(Estimate(None, None, None), Estimate(None, None, None))


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
    values = curve.points(np.ones((1, len(is_same)), dtype=np.int64), fars)[0]  # [FARs, 2]
    measurable = [is_measurable(far, impostors) for far in fars]
    wide_enough = [is_measurable(far, impostors, FALSE_ACCEPTS_FOR_INTERVAL) for far in fars]
    ends = np.full((2, len(fars), 2), np.nan)
    if any(wide_enough):
        resampled = np.concatenate([curve.points(weights, fars) for weights in _resamples(is_same, identities)])
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
    """The pairs in the order of their scores, for many weightings of the pairs."""

    def __init__(self, is_same: np.ndarray, scores: np.ndarray) -> None:
        order = np.argsort(-scores, kind="stable")
        self._genuine, self._impostors = order[is_same[order]], order[~is_same[order]]  # pairs, by descending score
        self._scores = scores[order]
        at = scores[self._impostors]
        # For each impostor pair: how many pairs, and how many genuine pairs, have a higher score.
        self._above = np.searchsorted(-self._scores, -at, side="left")
        self._genuine_above = np.searchsorted(-scores[self._genuine], -at, side="left")

    def points(self, weights: np.ndarray, fars: Sequence[float]) -> np.ndarray:
        """(threshold, TAR) for each resample and FAR, float64 [R, FARs, 2], from integer weights [R, P] of the pairs.

        A threshold is infinite if no score of the set is high enough.
        """
        rows = np.arange(len(weights))
        accepted = weights[:, self._impostors].cumsum(axis=1)  # [R, impostor pairs]
        far = accepted / np.maximum(accepted[:, -1:], 1)
        true = np.zeros((len(weights), len(self._genuine) + 1), dtype=np.int64)
        weights[:, self._genuine].cumsum(axis=1, out=true[:, 1:])
        total = np.maximum(true[:, -1], 1)
        thresholds = np.append(np.inf, self._scores)  # by the number of accepted pairs
        points = np.empty((len(weights), len(fars), 2))
        for column, limit in enumerate(fars):
            # The first impostor pair that must not be accepted, and so no pair of the same or of a lower score.
            first = np.minimum((far <= limit).sum(axis=1), len(self._impostors) - 1)
            points[:, column, 0] = thresholds[self._above[first]]
            points[:, column, 1] = true[rows, self._genuine_above[first]] / total
        return points


def _resamples(is_same: np.ndarray, identities: np.ndarray | None) -> Iterator[np.ndarray]:
    """How often each pair was drawn, int [R, P], for RESAMPLES resamples in parts of RESAMPLES_AT_ONCE."""
    rng = np.random.default_rng(SEED)
    if identities is not None:
        names, identities = np.unique(identities, return_inverse=True)
        first, second = identities.reshape(-1, 2).T
    for _ in range(RESAMPLES // RESAMPLES_AT_ONCE):
        if identities is None:
            weights = np.empty((RESAMPLES_AT_ONCE, len(is_same)), dtype=np.int64)
            for members in (is_same, ~is_same):
                weights[:, members] = _times_drawn(rng, np.count_nonzero(members))
        else:
            drawn = _times_drawn(rng, len(names))
            weights = np.where(is_same, drawn[:, first], drawn[:, first] * drawn[:, second])
        yield weights


def _times_drawn(rng: np.random.Generator, count: int) -> np.ndarray:
    """How often each of `count` units is among `count` drawn ones, int [RESAMPLES_AT_ONCE, count]."""
    drawn = rng.integers(count, size=(RESAMPLES_AT_ONCE, count)) + count * np.arange(RESAMPLES_AT_ONCE)[:, None]
    return np.bincount(drawn.ravel(), minlength=RESAMPLES_AT_ONCE * count).reshape(RESAMPLES_AT_ONCE, count)
