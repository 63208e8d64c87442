"""What people look at: plots as PNG, and report.html with the tables, the plots and the worst errors as images."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from eval.protocols import Arrays, Figures, Results, flat
from eval.report.page import PairError, pair_thresholds, worst_errors, write_page
from eval.report.plots import png, set_plots, step_plots
from eval.report.results import listed
from eval.report.tables import Table, methods_table
from utils.files import atomic_write
from utils.weights import step_in_name


class ScoredCheckpoint(NamedTuple):
    """A checkpoint by its file name without .pth, and what it scored."""

    name: str
    results: Results

    @property
    def step(self) -> int | None:
        """The step in the name, None where it has none."""
        return step_in_name(self.name)


def write_report(
    page: str | os.PathLike,
    plots_folder: str | os.PathLike,
    checkpoints: Sequence[ScoredCheckpoint],
    about: dict[str, str],
    open_pairs: Callable[[str], Any],
    notes: Sequence[str],
) -> None:
    """Write the page, and its plots as PNG into the folder.

    The figures of all checkpoints; plots over steps of those that have one; of the last checkpoint whose arrays are
    there, all figures, the plots of each set, and the worst errors, whose images `open_pairs` gives by target.
    """
    tables = [methods_table("Summary [%]", {one.name: one.results.figures for one in checkpoints}, "checkpoint")]
    stepped = [(one.step, flat(one.results.figures)) for one in checkpoints if one.step is not None]
    plots = step_plots(stepped) if len(stepped) > 1 else {}
    errors: dict[str, list[PairError]] = {}
    notes = [*notes, *left_out(checkpoints)]
    detailed = next((one for one in reversed(checkpoints) if one.results.arrays), None)
    if detailed is None:
        notes.append("plots and errors of the sets: none, no checkpoint's arrays are kept (--save-json keeps them)")
    else:
        about = {**about, "plots and errors of": detailed.name}
        for protocol, targets in detailed.results.arrays.items():
            for target, arrays in targets.items():
                figures = detailed.results.figures[protocol][target]
                tables.append(_figures_table(f"{detailed.name}: {target}", figures))
                plots |= set_plots(protocol, target, figures, arrays)
        for target, arrays in detailed.results.arrays.get("verification", {}).items():
            errors[target] = _errors(open_pairs(target), arrays)
    drawn = {stem.replace("/", "_"): png(figure) for stem, figure in plots.items()}
    for stem, data in drawn.items():
        with atomic_write(Path(plots_folder, f"{stem}.png")) as file:
            file.write(data)
    write_page(page, "Face recognition scores", about, tables, drawn, errors, notes)


def left_out(checkpoints: Sequence[ScoredCheckpoint]) -> list[str]:
    """What was not scored: absent sets once, failed ones with their checkpoint."""
    absent = dict.fromkeys(where for one in checkpoints for where in one.results.absent)
    failed = [f"failed: {one.name}: {why}" for one in checkpoints for why in one.results.failed]
    return [f"absent: {where}" for where in absent] + failed


def _figures_table(title: str, figures: Figures) -> Table:
    return Table(title, ["figure", "value", ""], [list(line) for line in listed(figures)], set())


def _errors(images: Any, arrays: Arrays) -> list[PairError]:
    """The worst errors of both kinds on a verification set, with their images."""
    thresholds = pair_thresholds(arrays["threshold"], len(arrays["is_same"]))
    errors = []
    for pair in map(int, (number for kind in worst_errors(arrays) for number in kind)):
        first, second = images[[2 * pair, 2 * pair + 1]].numpy()
        score, is_same = float(arrays["score"][pair]), bool(arrays["is_same"][pair])
        errors.append(PairError(pair, first, second, score, float(thresholds[pair]), is_same))
    return errors
