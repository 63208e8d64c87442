"""What describes a benchmark (`Protocol`): its config keys, its files, its scoring, and how its metrics are shown."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from eval.embeddings import Embeddings

if TYPE_CHECKING:  # slow to import, and needed only where something is drawn
    from matplotlib.figure import Figure

# The metrics of a set by name. None: the metric does not exist, such as the threshold of a FAR that accepts no pair.
Metrics = dict[str, float | None]
# What the metrics of a set are computed from, by name: scores, decisions, ranks.
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class Display:
    """How to display a metric: scale, digits, direction. The defaults are for a percentage that should be high.

    scale: factor from the number to what people read; digits: after the decimal point; unit: follows the name in
    brackets; title: replaces name and unit; better: max or min, or None where no value is better than another.
    companion: the metric that stands in brackets behind this one, after the word `companion_title`. It has no line of
    its own in lists of metrics.
    """

    scale: float = 1.0
    digits: int = 2
    unit: str = "%"
    title: str = ""
    better: Callable[[Sequence[float]], float] | None = max
    companion: str = ""
    companion_title: str = ""

    def label(self, name: str) -> str:
        """The metric's name as people read it, with the unit."""
        return self.title or (f"{name} [{self.unit}]" if self.unit else name)

    def text(self, value: float | None) -> str:
        """The value as people read it; a dash if there is none."""
        return "-" if value is None else f"{self.scale * value:.{self.digits}f}"

    def best(self, values: Sequence[float | None]) -> float | None:
        """The best of the values; None if no value is better than another, or if there are none."""
        known = [value for value in values if value is not None]
        return self.better(known) if self.better and known else None


class Column(NamedTuple):
    """A column of tables that compare methods: `label` follows the name of the set in its header, and the metric
    `spread` follows the metric in brackets."""

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
    """A pair that was decided wrongly: its number, counted from 0; first and second uint8 [112, 112, 3] RGB; its score
    and the threshold of its fold, both cosines."""

    number: int
    first: np.ndarray
    second: np.ndarray
    score: float
    threshold: float
    is_same: bool


@dataclass(frozen=True)
class Protocol:
    """A benchmark: how its sets are found, opened, scored and shown.

    prefix: of its config keys (`<prefix>_targets`, `<prefix>_batch_size`, `<prefix>_num_workers`, `<prefix>_flip`).
    root: the config key of the folder with its sets.
    every: the config key of the number of epochs between its evaluations during training; 0 for never.
    files: where a set is in that folder, "{}" for its name; the first that exists is used.
    open: path -> images, a dataset as `embed` takes it. Raises InputError for a set that is broken.
    score: (images, embeddings) -> (metrics, arrays).
    columns: its metrics in tables that compare methods.
    displays: how to display its metrics, by name; one that is not here is a percentage that should be high.
    plots: plots of a set, by the first part of their file names. step_plots: plots over steps, by file name.
    warn: images -> what readers of the metrics of this set must know; None if there is never anything.
    errors: (images, arrays) -> the worst errors, whose images the report shows; None if it shows none.
    """

    prefix: str
    root: str
    open: Callable[[Path], Any]
    score: Callable[[Any, Embeddings], tuple[Metrics, Arrays]]
    columns: Sequence[Column]
    every: str = "eval_every_n_epoch"
    files: Sequence[str] = ("{}",)
    displays: Mapping[str, Display] = field(default_factory=dict)
    plots: Mapping[str, SetPlot] = field(default_factory=dict)
    step_plots: Mapping[str, StepPlot] = field(default_factory=dict)
    warn: Callable[[Any], list[str]] | None = None
    errors: Callable[[Any, Arrays], list[PairError]] | None = None

    def display(self, metric: str) -> Display:
        """How to display the metric."""
        return self.displays.get(metric, Display())
