"""Tables that compare methods, each by one run or by several runs with different seeds.

Runs of two methods are paired by their names, which are their seeds: paired runs begin with the same weights and see
the images in the same order. So the differences of paired runs vary less than the runs themselves.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t

from eval.metrics import mcnemar
from eval.protocols import PROTOCOLS, Results
from eval.report.tables import Headline, Table, headlines, methods_table
from utils.errors import InputError

# Method -> name of the run -> results. A method with a single run that has no seed names it "".
Runs = Mapping[str, Mapping[str, Results]]

CONFIDENCE = 0.95
SIGNIFICANCE_LEVEL = 0.05


class Mean(NamedTuple):
    """The mean of n values, their sample standard deviation, and the ends of the 95 % interval of the mean.

    Deviation and ends are NaN for one value.
    """

    mean: float
    deviation: float
    low: float
    high: float
    n: int


def mean_with_interval(values: Sequence[float]) -> Mean:
    """The interval is that of Student's t distribution: mean +- t * deviation / sqrt(n), with n - 1 degrees of freedom.
    It holds for values that are about normal."""
    n, mean = len(values), float(np.mean(values))
    if n < 2:
        return Mean(mean, np.nan, np.nan, np.nan, n)
    deviation = float(np.std(values, ddof=1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, n - 1)) * deviation / np.sqrt(n)
    return Mean(mean, deviation, mean - half, mean + half, n)


def comparison(runs: Runs, metrics: Sequence[str] = (), first: str | None = None) -> list[Table]:
    """The results of each method, the differences from the method `first`, and McNemar's test against it.

    metrics: metrics to show besides those of published tables, for the sets that have them; first: None for the first
    one of `runs`. If it has no runs, there are no differences.
    """
    first = next(iter(runs)) if first is None else first
    tables = [_means(runs, metrics) if has_several_runs(runs) else _single_runs(runs, metrics)]
    if len(runs) > 1 and first in runs:
        tables += [_differences(runs, first, metrics), _significance(runs, first)]
    return [table for table in tables if table.rows]


def parse_metrics(text: str) -> list[str]:
    """The metrics named in a text, separated by commas. Raises InputError if no protocol has one of them."""
    metrics = [metric for metric in text.split(",") if metric]
    known = {name for protocol in PROTOCOLS.values() for name in protocol.displays}
    known |= {column.metric for protocol in PROTOCOLS.values() for column in protocol.columns}
    for metric in metrics:
        if metric not in known:
            raise InputError(f"--metrics: there is no metric {metric}; the metrics are {', '.join(sorted(known))}")
    return metrics


def has_several_runs(runs: Runs) -> bool:
    return any(len(results) > 1 for results in runs.values())


def _single_runs(runs: Runs, metrics: Sequence[str]) -> Table:
    by_method = {method: next(iter(results.values())).metrics for method, results in runs.items()}
    return methods_table("", by_method, "[%] (std over folds)", metrics)


def _headlines(runs: Runs, metrics: Sequence[str]) -> list[Headline]:
    """The columns, whose `metrics` are by (method, name of the run)."""
    every = {(method, run): results.metrics for method, by_run in runs.items() for run, results in by_run.items()}
    return headlines(every, metrics)


def _means(runs: Runs, metrics: Sequence[str]) -> Table:
    """Mean and standard deviation over the runs of each method."""
    columns = _headlines(runs, metrics)
    means = {
        (method, number): _mean_of(column, [(method, run) for run in runs[method]])
        for number, column in enumerate(columns, 1)
        for method in runs
    }
    best = set()
    for number, column in enumerate(columns, 1):
        values = [mean and mean.mean for mean in (means[method, number] for method in runs)]
        best_value = column.display.best(values)
        best |= {(row, number + 1) for row, value in enumerate(values) if value is not None and value == best_value}

    def cell(method: str, number: int) -> str:
        column, mean = columns[number - 1], means[method, number]
        mark = "".join({column.mark((method, run)) for run in runs[method]})
        in_brackets = f" ({column.display.text(mean.deviation)})" if mean and mean.n > 1 else ""
        return column.display.text(mean and mean.mean, mark) + in_brackets

    header = ["mean over runs [%] (standard deviation)", "runs", *(column.label for column in columns)]
    rows = [[method, str(len(runs[method])), *(cell(method, n) for n in range(1, len(header) - 1))] for method in runs]
    return Table("", header, rows, best)


def _mean_of(column: Headline, keys: Sequence[tuple[str, str]]) -> Mean | None:
    """Over the runs `keys` of a method; None if there are none, or if one lacks the metric."""
    values = column.values()
    known = [values[key] for key in keys]
    return None if not known or None in known else mean_with_interval(known)


def _differences(runs: Runs, first: str, metrics: Sequence[str]) -> Table:
    """The mean differences of paired runs of the other methods and the first one, in points."""
    columns, several = _headlines(runs, metrics), has_several_runs(runs)

    def cell(column: Headline, method: str, paired: list[str]) -> str:
        values = column.values()
        of_pairs = [(values[method, run], values[first, run]) for run in paired]
        if not paired or any(None in pair for pair in of_pairs):
            return "-"
        mean = mean_with_interval([column.display.scale * (value - reference) for value, reference in of_pairs])
        mark = "".join({column.mark((method, run)) or column.mark((first, run)) for run in paired})
        number = f"+.{column.display.digits}f"
        interval = f" ({mean.low:{number}} to {mean.high:{number}})" if mean.n > 1 else ""
        return f"{mean.mean:{number}}{mark}{interval}"

    rows = []
    for method in runs:
        if method != first:
            paired = _paired(runs, method, first)
            counts = [str(len(paired))] if several else []
            rows.append([method, *counts, *(cell(column, method, paired) for column in columns)])
    corner = f"minus {first} [points]" + (" (95 % interval)" if several else "")
    return Table(
        "", [corner, *(["paired runs"] if several else []), *(column.label for column in columns)], rows, set()
    )


def _paired(runs: Runs, method: str, first: str) -> list[str]:
    """The names of the runs that both methods have."""
    return [run for run in runs[method] if run in runs[first]]


def _significance(runs: Runs, first: str) -> Table:
    """McNemar's test of every other method against the first one, on every set of pairs that both have.

    With several runs, the counts are sums over the paired runs. They measure these runs on these pairs: decisions of
    different seeds on one pair are not independent, so the p of the sums is too small if it is taken for other pairs.
    Therefore nothing is then called larger than chance.
    """
    counts = [f"pairs that only {first} decides correctly", "pairs that only this method decides correctly"]
    several = has_several_runs(runs)
    last = "p of the sums (McNemar)" if several else "p (McNemar)"
    header = [
        f"compared with {first}",
        "set",
        *counts,
        last,
        "note" if several else f"difference at {SIGNIFICANCE_LEVEL}",
    ]
    rows = [
        [method, target, *_mcnemar_cells(runs, method, first, protocol, target)]
        for method in runs
        if method != first
        for protocol in pair_protocols()
        for target in _sets(runs[method], protocol)
        if target in _sets(runs[first], protocol)
    ]
    return Table("", header, rows, set())


def pair_protocols() -> list[str]:
    """The protocols that decide pairs."""
    return [name for name, protocol in PROTOCOLS.items() if protocol.decides_pairs]


def _sets(results: Mapping[str, Results], protocol: str) -> list[str]:
    """The sets of a protocol that some run of a method has, without summaries of several sets."""
    found = [item for run in results.values() for item in run.metrics.get(protocol, {}).items()]
    return list(dict.fromkeys(target for target, values in found if not PROTOCOLS[protocol].is_summary(target, values)))


def _mcnemar_cells(runs: Runs, method: str, first: str, protocol: str, target: str) -> list[str]:
    """The cells of the table of `_significance` that follow the names of the method and of the set."""
    is_correct: list[tuple[np.ndarray, np.ndarray]] = []
    paired = _paired(runs, method, first)
    for run in paired:
        arrays = [runs[name][run].arrays.get(protocol, {}).get(target) for name in (first, method)]
        if None in arrays:
            continue
        if not np.array_equal(arrays[0]["is_same"], arrays[1]["is_same"]):
            return ["-", "-", "-", "unknown: the sets have different pairs"]
        is_correct.append(tuple(part["decision"] == part["is_same"] for part in arrays))
    if not is_correct:
        return ["-", "-", "-", f"unknown: {'the .npz beside the JSON is missing' if paired else 'no paired runs'}"]
    only_first, only_other, p = mcnemar(*map(np.concatenate, zip(*is_correct, strict=True)))
    verdict = "larger than chance" if p < SIGNIFICANCE_LEVEL else "may be chance"
    if has_several_runs(runs):
        verdict = f"for these {len(is_correct)} networks and pairs"
        if len(is_correct) < len(paired):
            verdict = f"for {len(is_correct)} of {len(paired)} networks and these pairs; the others are unknown"
    return [str(only_first), str(only_other), f"{p:.2g}", verdict]
