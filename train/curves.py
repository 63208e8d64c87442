"""The curves of a run: the loss, its statistics and the accuracies over the steps, from metrics.jsonl."""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from utils.files import atomic_write

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLUMNS = 4
NOT_DRAWN = ("step", "kind", "epoch", "time")


def save_curves(metrics: str | os.PathLike, path: str | os.PathLike) -> None:
    """Write a PNG of the curves in `metrics` (metrics.jsonl); its title is the name of the output folder."""
    entries = [json.loads(line) for line in Path(metrics).read_text(encoding="utf-8").splitlines()]
    with atomic_write(path) as file:
        draw_curves(Path(metrics).resolve().parent.name, entries).savefig(file, format="png", dpi=100)


def draw_curves(title: str, entries: Sequence[dict[str, Any]]) -> "Figure":
    """Draw one panel per training metric, and one for the accuracies. entries: the lines of metrics.jsonl.

    Metrics that are 0 at every step have no panel; they are named below the panels.
    """
    from matplotlib.figure import Figure  # slow to import, and needed once per run

    training = [entry for entry in entries if entry["kind"] == "training"]
    names = [name for name in (training[0] if training else {}) if name not in NOT_DRAWN]
    zero = [name for name in names if all(entry[name] == 0 for entry in training)]
    names = [name for name in names if name not in zero]
    accuracies = _accuracies(entry for entry in entries if entry["kind"] == "evaluation")
    rows = -(-(len(names) + bool(accuracies)) // COLUMNS) or 1
    figure = Figure(figsize=(4 * COLUMNS, 3 * rows), layout="constrained")
    panels = iter(figure.subplots(rows, COLUMNS, squeeze=False).flat)
    for name, panel in zip(names, panels, strict=False):
        panel.plot([entry["step"] for entry in training], [entry[name] for entry in training], linewidth=1)
        panel.set_title(name)
    if accuracies:
        panel = next(panels)
        for target, points in accuracies.items():
            panel.plot(*zip(*points, strict=True), marker="o", label=target)
        panel.set_title("accuracy [%]")
        panel.legend()
    for panel in panels:
        panel.set_axis_off()
    figure.suptitle(f"{title}: curves of the run".replace("$", r"\$"))  # two dollar signs would enclose a formula
    figure.supxlabel("step" + (f" (always 0, not drawn: {', '.join(zero)})" if zero else ""))
    return figure


def _accuracies(evaluations: Iterable[dict[str, Any]]) -> dict[str, list[tuple[int, float]]]:
    """For each verification set, sorted by name: its points (step, accuracy in percent)."""
    points: dict[str, list[tuple[int, float]]] = {}
    for entry in evaluations:
        for name, value in entry.items():
            if name.endswith("Accuracy-Flip") and value is not None:
                points.setdefault(name, []).append((entry["step"], 100 * value))
    return {name.split(".")[1]: points[name] for name in sorted(points)}
