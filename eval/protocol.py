"""`Protocol`, the description of a benchmark: its config keys, its files, its scoring, and how to show its metrics."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eval.embeddings import Embeddings
from eval.metrics import is_measurable

if TYPE_CHECKING:  # slow to import, and needed only where something is drawn
    from matplotlib.figure import Figure

# The metrics of a set by name. None: the metric does not exist, such as the threshold of a FAR that accepts no pair.
Metrics = dict[str, float | None]
# Protocol -> set -> metrics, as in the files of results.
AllMetrics = Mapping[str, Mapping[str, Metrics]]
# The arrays from which the metrics of a set are computed, by name: scores, decisions, ranks.
Arrays = dict[str, np.ndarray]

GENUINE_PAIRS, IMPOSTOR_PAIRS = "genuine_pairs", "impostor_pairs"  # the names of the metrics of `count_pairs`
NOT_MEASURABLE = "†"  # follows a displayed value
INTERVAL_ENDS = "_low", "_high"  # follow the name of a metric in the names of the ends of its 95 % interval
MEANING_OF_MARK = f"{NOT_MEASURABLE} not measurable: the set has fewer impostor pairs than 1 / FAR"


def count_pairs(is_genuine: np.ndarray) -> Metrics:
    """The numbers of genuine and of impostor pairs, from bool [P], as metrics of a set."""
    genuine = int(np.count_nonzero(is_genuine))
    return {GENUINE_PAIRS: genuine, IMPOSTOR_PAIRS: len(is_genuine) - genuine}


@dataclass(frozen=True)
class Display:
    """How to display a metric: scale, digits, direction. The defaults are for a percentage that should be high.

    scale: the factor between the metric and the displayed value; digits: the number of digits after the decimal point;
    unit: follows the name in brackets; title: replaces name and unit; better: max or min, or None if no value is better
    than another. companion: another metric, which is shown in brackets after this one, with the word `companion_title`
    before it. has_interval: whether two more metrics, named like this one with INTERVAL_ENDS, are its 95 % interval,
    which is shown in brackets. Lists of metrics have no separate lines for companions and intervals. far: the FAR at
    which a rate or a threshold is taken; false_accepts: how many it needs. If fewer impostor pairs are expected to be
    accepted (see `count_pairs`), the metric is marked as not measurable.
    """

    scale: float = 1.0
    digits: int = 2
    unit: str = "%"
    title: str = ""
    better: Callable[[Sequence[float]], float] | None = max
    companion: str = ""
    companion_title: str = ""
    has_interval: bool = False
    far: float | None = None
    false_accepts: int = 1

    def label(self, name: str) -> str:
        """The displayed name of the metric, with its unit."""
        return self.title or (f"{name} [{self.unit}]" if self.unit else name)

    def text(self, value: float | None, mark: str = "") -> str:
        """The displayed value, a dash if there is none, with the mark after it."""
        return ("-" if value is None else f"{self.scale * value:.{self.digits}f}") + mark

    def mark(self, metrics: Metrics) -> str:
        """NOT_MEASURABLE if the set with these metrics has too few impostor pairs, or else ""."""
        impostors = metrics.get(IMPOSTOR_PAIRS)  # results of older versions lack it
        if self.far is None or impostors is None or is_measurable(self.far, impostors, self.false_accepts):
            return ""
        return NOT_MEASURABLE

    def best(self, values: Sequence[float | None]) -> float | None:
        """The best of the values; None if no value is better than another, or if there are none."""
        known = [value for value in values if value is not None]
        return self.better(known) if self.better and known else None


class Column(NamedTuple):
    """A column of tables that compare methods.

    metric: its name; label: follows the name of the set in the header; spread: the name of another metric, which is
    shown in brackets after this one, or "".
    """

    metric: str
    label: str = ""
    spread: str = ""


class SetPlot(NamedTuple):
    """A plot of one scored set: its caption, and the function that draws it."""

    caption: str
    draw: "Callable[[Metrics, Arrays], Figure]"


class StepPlot(NamedTuple):
    """A plot of metrics over training steps: one line per set and metric.

    y: the label of the y axis; lines: what follows the set's name in the legend, by metric.
    """

    caption: str
    y: str
    lines: Mapping[str, str]


class PairError(NamedTuple):
    """A pair that was decided wrongly.

    number: of the pair, counted from 0; first and second: its images, uint8 [112, 112, 3] RGB; score, and threshold of
    its fold: both cosines.
    """

    number: int
    first: np.ndarray
    second: np.ndarray
    score: float
    threshold: float
    is_same: bool


@dataclass(frozen=True)
class Protocol:
    """A benchmark: how its sets are found, opened, scored and shown.

    root: the config key of the folder with its sets, without the prefix that all its keys have (config/names.py).
    every: the config key of the number of epochs between its evaluations during training; 0 for never.
    files: possible paths of a set in that folder, with "{}" for its name; the first path that exists is used.
    open: path -> images, a dataset as `embed` takes it. Raises InputError for a set that is broken.
    score: (images, embeddings) -> (metrics, arrays).
    columns: its metrics in tables that compare methods.
    displays: how to display its metrics, by name; a metric without an entry is a percentage that should be high.
    plots: plots of a set, by the first part of their file names. step_plots: plots over steps, by file name.
    warn: images -> warnings for the readers of this set's metrics; None if there are never any.
    errors: (images, arrays) -> the worst errors, whose images the report shows; None if the report shows no errors.
    decides_pairs: whether its arrays hold `is_same` and `decision`, bool [P], so that compare.py can test methods pair
    by pair.
    summaries: functions that compute metrics of several sets together, by the name that takes the place of a set in
    their result names: metrics of the sets by name -> (metrics, warnings), or None if those sets were not scored.
    """

    open: Callable[[Path], Any]
    score: Callable[[Any, Embeddings], tuple[Metrics, Arrays]]
    columns: Sequence[Column]
    root: str = "root"
    every: str = "eval_every_n_epoch"
    files: Sequence[str] = ("{}",)
    displays: Mapping[str, Display] = field(default_factory=dict)
    plots: Mapping[str, SetPlot] = field(default_factory=dict)
    step_plots: Mapping[str, StepPlot] = field(default_factory=dict)
    warn: Callable[[Any], list[str]] | None = None
    errors: Callable[[Any, Arrays], list[PairError]] | None = None
    decides_pairs: bool = False
    summaries: Mapping[str, Callable[[Mapping[str, Metrics]], tuple[Metrics, list[str]] | None]] = field(
        default_factory=dict
    )

    def display(self, metric: str) -> Display:
        """How to display the metric."""
        return self.displays.get(metric, Display())

    def is_summary(self, name: str, metrics: Metrics) -> bool:
        """Whether these metrics, which have `name` in the place of a set, summarise several sets."""
        return name in self.summaries and IMPOSTOR_PAIRS not in metrics


# How to display the metrics of `count_pairs`.
PAIR_COUNTS = {
    GENUINE_PAIRS: Display(digits=0, unit="", title="genuine pairs", better=None),
    IMPOSTOR_PAIRS: Display(digits=0, unit="", title="impostor pairs", better=None),
}
