"""Which checkpoint is the best: the one with the best value of one metric; of equal ones, the earliest."""

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from eval import rfw
from eval.protocol import Display, Metrics
from eval.protocols import PROTOCOLS
from eval.sets import EvaluationSet
from utils.errors import InputError

MEAN = "mean"  # the mean accuracy of the verification sets
ACCURACY = "Accuracy-Flip"
WHY_NO_VALUE = "because a set has too few pairs for it, or was not scored; name another metric"


class Criterion(NamedTuple):
    """What decides. name: as the user gives it; metrics: the result names whose mean decides; display: how to display
    this mean, and whether high or low values are better."""

    name: str
    metrics: tuple[str, ...]
    display: Display

    @property
    def meaning(self) -> str:
        """The criterion in words, with its unit."""
        what = f"mean accuracy of {len(self.metrics)} verification set(s)" if self.name == MEAN else self.name
        return f"{what} [{self.display.unit}]" if self.display.unit else what

    def value(self, metrics: Metrics) -> float | None:
        """The value of a checkpoint with these metrics by result name; None if one of those that decide is missing."""
        values = [metrics.get(name) for name in self.metrics]
        return None if None in values else sum(values) / len(values)

    def best(self, values: Iterable[float | None]) -> int | None:
        """The position of the first of the best values; None if there are none."""
        sign = -1 if self.display.better is min else 1
        known = [(sign * value, -position) for position, value in enumerate(values) if value is not None]
        return -max(known)[1] if known else None


def build_criterion(setting: str, name: str, sets: Sequence[EvaluationSet]) -> Criterion:
    """The criterion for a metric of one of `sets`, by its result name, or for MEAN, over the verification sets.

    setting: the key or flag with this value, for error messages. Raises InputError if `sets` do not have this metric,
    or if no value of it is better than another.
    """
    if name == MEAN:
        metrics = tuple(
            f"{evaluation_set.result_name}.{ACCURACY}"
            for evaluation_set in sets
            if evaluation_set.protocol == "verification"
        )
        if metrics:
            return Criterion(name, metrics, PROTOCOLS["verification"].display(ACCURACY))
        raise InputError(f"{setting}={name} needs a verification set that exists and is evaluated")
    for evaluation_set in sets:
        metric = name.removeprefix(f"{evaluation_set.result_name}.")
        protocol = PROTOCOLS[evaluation_set.protocol]
        metrics_of_sets = {*protocol.displays, *(column.metric for column in protocol.columns)} - rfw.DISPLAYS.keys()
        if metric == name or metric not in metrics_of_sets:
            continue
        display = protocol.display(metric)
        if display.better is None:
            raise InputError(f"{setting}={name}: no value of this metric is better than another; name another one")
        return Criterion(name, (name,), display)
    known = ", ".join(evaluation_set.result_name for evaluation_set in sets) or "none"
    raise InputError(
        f"{setting}={name}: no set that exists and is evaluated has this metric; name a metric of one of them (sets: "
        f"{known}) as results do, for example verification.lfw.{ACCURACY}, or {MEAN}; "
        "metrics of the summary verification.rfw cannot be used"
    )
