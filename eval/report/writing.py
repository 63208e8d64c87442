"""What people look at: plots as PNG, and report.html with the tables, the plots and the worst errors as images."""

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
    """A checkpoint's file name without .pth, and its results."""

    name: str
    results: Results

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

    The page has the headline metrics of all checkpoints and plots over the steps in their names. Of the last checkpoint
    with arrays it has all metrics, the plots of each set, and the worst errors, whose images come from
    open_images(protocol, set).
    """
    tables = [methods_table("Summary [%]", {one.name: one.results.metrics for one in checkpoints}, "checkpoint")]
    with_step = [(one.step, one.results.metrics) for one in checkpoints if one.step is not None]
    plots = step_plots(with_step) if len(with_step) > 1 else {}
    errors: dict[str, list[PairError]] = {}
    notes = [*notes, *notes_on(checkpoints)]
    detailed = next((one for one in reversed(checkpoints) if one.results.arrays), None)
    if detailed is None:
        notes.append("no plots and errors of single sets: no checkpoint's arrays were kept (--save-json keeps them)")
    else:
        about = {**about, "plots and errors of": detailed.name}
        for name, targets in detailed.results.arrays.items():
            find_errors = PROTOCOLS[name].errors
            for target, arrays in targets.items():
                metrics = detailed.results.metrics[name][target]
                tables.append(metrics_table(f"{detailed.name}: {target}", name, metrics))
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
    """What readers must know: absent sets and warnings once, failed sets for each checkpoint."""
    absent = dict.fromkeys(path for one in checkpoints for path in one.results.absent)
    warnings = dict.fromkeys(warning for one in checkpoints for warning in one.results.warnings)
    failed = [f"failed: {one.name}: {reason}" for one in checkpoints for reason in one.results.failed]
    return [f"absent: {path}" for path in absent] + [f"warning: {warning}" for warning in warnings] + failed
