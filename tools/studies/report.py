"""The page of a study, study.md with its tables, and study.png with the learning curves; study.csv beside them."""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from eval.comparison import comparison
from eval.drawing import COLORS, STYLES, add_legend, new_axes
from eval.protocols import Results
from eval.report import markdown, read_json
from tools.studies.plan import Run
from tools.studies.records import CSV, DONE, FACTS, SETTINGS, has_files, recorded_results, write_records
from utils.files import atomic_write, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PICTURE = "study.md", "study.png"
CURVE = "Accuracy-Flip"
# Means and standard deviations of the accuracy: method -> set -> (steps [n], mean [n], deviation [n]), in percent.
Curves = Mapping[str, Mapping[str, tuple[np.ndarray, np.ndarray, np.ndarray]]]


def write_study(folder: Path, command: str, status: Mapping[Run, str], metrics: Sequence[str] = ()) -> list[str]:
    """Write the files of a study. Returns their names: there is no picture if no method has curves of all its runs.

    command: how the study was started; status: DONE, or why a run has no results; metrics: more metrics to show (see
    `comparison`).
    """
    known = {run: _results_and_facts(run) for run, text in status.items() if text == DONE}
    results = {run: run_results for run, (run_results, _) in known.items()}
    facts = {run: run_facts for run, (_, run_facts) in known.items()}
    write_records(folder, status, results, facts)
    curves = _curves(results)
    if curves:
        with atomic_write(folder / PICTURE) as file:
            _draw(curves).savefig(file, format="png", dpi=120)
    else:
        (folder / PICTURE).unlink(missing_ok=True)
    write_text(folder / PAGE, _page(folder.name, command, status, results, facts, metrics, bool(curves)))
    return [CSV, SETTINGS, PAGE, *([PICTURE] if curves else [])]


def _results_and_facts(run: Run) -> tuple[Results, Mapping[str, str]]:
    """The results, and facts about them: commit, versions and device are those of the training, not of the evaluation.
    Both are from study.csv if the files of the run are gone."""
    if not has_files(run):
        return recorded_results(run)
    config = (run.folder / "config.py").read_text(encoding="utf-8")
    trained = re.findall(rf"^# ({'|'.join(FACTS)}): (.*)$", config, re.MULTILINE)
    return read_json(run.results), json.loads(run.results.read_bytes())["about"] | dict(trained)


def _page(
    title: str,
    command: str,
    status: Mapping[Run, str],
    results: Mapping[Run, Results],
    facts: Mapping[Run, Mapping[str, str]],
    metrics: Sequence[str],
    has_picture: bool,
) -> str:
    by_method: dict[str, dict[str, Results]] = {}
    for run, run_results in results.items():
        by_method.setdefault(run.method.name, {})[f"seed{run.seed}"] = run_results
    parts = [f"# {title}", f"```bash\n{command}\n```", "\n".join(_facts_lines(facts.values()))]
    first = next(iter(status)).method.name
    tables = comparison(by_method, metrics, first) if by_method else []
    if not any(of_first.arrays for of_first in by_method.get(first, {}).values()):
        tables = tables[:2]  # McNemar's test needs the scores of single pairs, which study.csv does not have
    parts += map(markdown, tables)
    if has_picture:
        parts.append(f"![Accuracy over training steps, means and standard deviations over the runs]({PICTURE})")
    if missing := _missing_lines(status):
        parts.append("Runs without results:\n\n" + "\n".join(missing))
    return "\n\n".join(filter(None, parts)) + "\n"


def _missing_lines(status: Mapping[Run, str]) -> list[str]:
    """A line for each method and each reason for which runs have no results."""
    seeds: dict[tuple[str, str], list[str]] = {}
    for run, text in status.items():
        if text != DONE:
            seeds.setdefault((run.method.name, text), []).append(str(run.seed))
    return [f"- {method}, seed {', '.join(numbers)}: {text}" for (method, text), numbers in seeds.items()]


def _facts_lines(facts: Iterable[Mapping[str, str]]) -> list[str]:
    """A line for each fact; several values if runs differ."""
    facts = list(facts)
    values = {name: dict.fromkeys(about[name] for about in facts if about.get(name)) for name in FACTS}
    return [f"- {name}: {'; '.join(found)}" for name, found in values.items() if found]


def _curves(results: Mapping[Run, Results]) -> Curves:
    """The accuracies at the evaluations during training that all runs of a method have. A method is left out if a run
    of it has none, for example because its files are gone."""
    points: dict[str, list[dict[str, dict[int, float]]]] = {}
    for run in results:
        points.setdefault(run.method.name, []).append(_accuracies(run))
    return {
        method: {
            target: _mean_curve([by_set[target] for by_set in of_runs])
            for target in of_runs[0]
            if all(target in by_set for by_set in of_runs)
        }
        for method, of_runs in points.items()
        if all(of_runs)
    }


def _accuracies(run: Run) -> dict[str, dict[int, float]]:
    """Set -> step -> accuracy in percent, of the evaluations of a run."""
    by_set: dict[str, dict[int, float]] = {}
    for entry in _entries(run.folder / "metrics.jsonl"):
        for name, value in entry.items():
            if name.endswith(f".{CURVE}") and value is not None:
                by_set.setdefault(name.split(".", 1)[1].removesuffix(f".{CURVE}"), {})[entry["step"]] = 100 * value
    return by_set


def _entries(path: Path) -> Iterator[dict]:
    """The evaluations in metrics.jsonl."""
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            entry = json.loads(line)
            if entry["kind"] == "evaluation":
                yield entry


def _mean_curve(curves: Sequence[Mapping[int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    steps = sorted(set.intersection(*(set(curve) for curve in curves)))
    values = np.array([[curve[step] for step in steps] for curve in curves])  # [runs, steps]
    deviation = values.std(0, ddof=1) if len(values) > 1 else np.zeros(len(steps))
    return np.array(steps), values.mean(0), deviation


def _draw(curves: Curves) -> "Figure":
    """One line per method and set, with a band of one standard deviation on both sides."""
    axes = new_axes("step", "accuracy [%]")
    targets = list(dict.fromkeys(target for by_set in curves.values() for target in by_set))
    for number, (method, by_set) in enumerate(curves.items()):
        for target, (steps, mean, deviation) in by_set.items():
            color = COLORS[number % len(COLORS)]
            style = STYLES[(number // len(COLORS) + targets.index(target)) % len(STYLES)]
            label = method if len(targets) == 1 else f"{method}: {target}"
            axes.plot(steps, mean, color=color, linestyle=style, marker=".", label=label.replace("$", r"\$"))
            axes.fill_between(steps, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    return add_legend(axes, columns=1)
