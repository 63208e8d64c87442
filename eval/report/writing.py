"""Write the plots as PNG files, and report.html with the tables, the plots and the worst errors as images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.drawing import to_png
from eval.protocol import PairError
from eval.protocols import PROTOCOLS, Results
from eval.report.page import write_page
from eval.report.plots import set_plots, step_plots
from eval.report.tables import methods_table, metrics_table
from utils.files import atomic_write
from utils.weights import step_in_name


class ScoredCheckpoint(NamedTuple):
    """A checkpoint's file name without .pth, its results, and whether it is marked as the best."""

    name: str
    results: Results
    is_best: bool = False

    @property
    def label(self) -> str:
        """The name in tables of checkpoints."""
        return f"{self.name} (best)" if self.is_best else self.name

    @property
    def step(self) -> int | None:
        """The step in the name; None if it has none."""
        return step_in_name(self.name)


def write_report(
    page: str | os.PathLike,
    plots_folder: str | os.PathLike,
    checkpoints: Sequence[ScoredCheckpoint],
    about: dict[str, str],
    open_images: Callable[[str, str], Any],
    notes: Sequence[str],
) -> None:
    """Write the page, and its plots as PNG files into the folder.

    The page has the headline metrics of all checkpoints, and plots over the steps in their names. For the last
    checkpoint with arrays, it also has all metrics, the plots of each set, and the worst errors.

    open_images: (protocol, set) -> the opened set, for the images of the errors; about and notes: see `write_page`.
    """
    metrics_by_label = {checkpoint.label: checkpoint.results.metrics for checkpoint in checkpoints}
    tables = [methods_table("Summary [%]", metrics_by_label, "checkpoint")]
    metrics_by_step = [
        (checkpoint.step, checkpoint.results.metrics) for checkpoint in checkpoints if checkpoint.step is not None
    ]
    plots = step_plots(metrics_by_step) if len(metrics_by_step) > 1 else {}
    errors: dict[str, list[PairError]] = {}
    notes = [*notes, *notes_on(checkpoints)]
    detailed = next((checkpoint for checkpoint in reversed(checkpoints) if checkpoint.results.arrays), None)
    if detailed is None:
        notes.append("no plots and errors of single sets: no checkpoint's arrays were kept (--save-json keeps them)")
    else:
        about = {**about, "plots and errors of": detailed.name}
        for name, targets in detailed.results.metrics.items():
            find_errors = PROTOCOLS[name].errors
            for target, metrics in targets.items():
                tables.append(metrics_table(f"{detailed.name}: {target}", name, metrics))
                arrays = detailed.results.arrays.get(name, {}).get(target)
                if arrays is None:  # a summary of several sets
                    continue
                plots |= set_plots(name, target, metrics, arrays)
                if find_errors is not None:
                    errors[target] = find_errors(open_images(name, target), arrays)
    pictures = []
    for stem, plot in plots.items():
        png = to_png(plot.figure)
        pictures.append((plot.caption, png))
        with atomic_write(Path(plots_folder, f"{stem.replace('/', '_')}.png")) as file:
            file.write(png)
    write_page(page, "Face recognition scores", about, tables, pictures, errors, notes)


def notes_on(checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    """Notes for the readers of the metrics: absent sets and warnings once, failed sets for each checkpoint."""
    absent = dict.fromkeys(path for checkpoint in checkpoints for path in checkpoint.results.absent)
    warnings = dict.fromkeys(warning for checkpoint in checkpoints for warning in checkpoint.results.warnings)
    failed = [
        f"failed: {checkpoint.name}: {reason}" for checkpoint in checkpoints for reason in checkpoint.results.failed
    ]
    return [f"absent: {path}" for path in absent] + [f"warning: {warning}" for warning in warnings] + failed
