"""Results as people and programs read them: lines on the screen, JSON, CSV, and the arrays beside them in .npz."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.protocols import PROTOCOLS, Arrays, Figures, Results, flat
from eval.report.figures import label, text
from utils.errors import InputError
from utils.files import atomic_write, write_text
from utils.weights import refuse_inflated


def screen(results: Results) -> str:
    """A line a figure; deviations and thresholds stand in brackets behind the figure that they belong to."""
    lines = [f"{'set':32} {'figure':36} {'value':>8}"]
    for targets in results.figures.values():
        for target, figures in targets.items():
            lines += [f"{target:32} {name:36} {value:>8}{beside}" for name, value, beside in listed(figures)]
    lines += [f"absent: {where}" for where in results.absent]
    lines += [f"FAILED: {why}" for why in results.failed]
    return "\n".join(lines)


def listed(figures: Figures) -> list[tuple[str, str, str]]:
    """(name, value, what belongs behind it) as people read them: rates in percent, thresholds as they are."""
    lines = []
    for name, value in figures.items():
        if name == "Accuracy-Std" or "_thresh_at_" in name:
            continue
        beside = ""
        if name == "Accuracy-Flip":
            beside = f" ({text('Accuracy-Std', figures['Accuracy-Std'])})"
        elif "_tpr_at_" in name:
            threshold = name.replace("_tpr_", "_thresh_")
            beside = f" (threshold {text(threshold, figures[threshold])})"
        lines.append((label(name), text(name, value), beside))
    return lines


def write_json(path: str | os.PathLike, results: Results, about: dict[str, str]) -> None:
    """Figures nested by protocol, target and name; beside them `absent` and `failed` sets, and `about` (checkpoint,
    command, versions). The arrays go to the file of the same name with .npz, before it."""
    write_arrays(arrays_beside(path), results)
    _write(path, {**_content(results), "about": about})


def write_collected_json(path: str | os.PathLike, results: dict[str, Results], about: dict[str, str]) -> None:
    """The same of several checkpoints, by name under `checkpoints`, without arrays."""
    _write(path, {"checkpoints": {name: _content(one) for name, one in results.items()}, "about": about})


def _content(results: Results) -> dict[str, Any]:
    return {**results.figures, "absent": results.absent, "failed": results.failed}


def _write(path: str | os.PathLike, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, protocols: Container[str] = tuple(PROTOCOLS)) -> Results:
    """What `write_json` wrote, with the arrays of `protocols`, if the .npz is there. Raises InputError."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text())
        del content["about"]
        absent, failed = content.pop("absent"), content.pop("failed")
        if not all(isinstance(number, int | float | None) for number in flat(content).values()):
            raise TypeError("a figure is no number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: holds no results of run_full_eval.py --results-json") from None
    return Results(content, read_arrays(arrays_beside(path), protocols), absent, failed)


def refuse_to_overwrite(path: str | os.PathLike, with_arrays: bool) -> None:
    """Raise InputError where results written to `path`, or their arrays, would replace a file that holds none.

    To be called before the scoring, which takes long.
    """
    files = [(Path(path), _is_results), (arrays_beside(path), _is_arrays)]
    for file, is_ours in files[: 1 + with_arrays]:
        if os.path.lexists(file) and not is_ours(file):
            raise InputError(f"{file}: exists, and holds no results; name another file, or write over it with --force")


def _is_results(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
        return "about" in content and ("checkpoints" in content or {"absent", "failed"} <= set(content))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _is_arrays(path: Path) -> bool:
    """Whether the archive has names as `write_arrays` gives them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.partition("/")[0] in PROTOCOLS and name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def arrays_beside(path: str | os.PathLike) -> Path:
    """Where the arrays of the results in `path` lie."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".npz")


def write_arrays(path: str | os.PathLike, results: Results) -> None:
    """An .npz of every set's arrays, under protocol/target/name."""
    arrays = {
        f"{protocol}/{target}/{name}": array
        for protocol, targets in results.arrays.items()
        for target, named in targets.items()
        for name, array in named.items()
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike, protocols: Container[str]) -> dict[str, dict[str, Arrays]]:
    """Protocol -> target -> name -> array, of `protocols`; empty where there is no such file. Raises InputError."""
    arrays: dict[str, dict[str, Arrays]] = {}
    if not os.path.exists(path):
        return arrays
    try:
        refuse_inflated(path)
        with np.load(path, allow_pickle=False) as file:
            for key in file.files:
                protocol, rest = key.split("/", 1)
                target, name = rest.rsplit("/", 1)
                if protocol not in protocols:
                    continue
                arrays.setdefault(protocol, {}).setdefault(target, {})[name] = file[key]
    except Exception as error:  # a broken archive raises nearly any exception
        raise InputError(f"{path}: broken, or not written by run_full_eval.py; remove it and score again") from error
    return arrays


def write_csv(path: str | os.PathLike, results: Results) -> None:
    """metric,value: a line a figure, empty where there is no such number."""
    write_rows(path, [("metric", "value"), *flat(results.figures).items()])


def write_rows(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file; None is an empty field."""
    written = io.StringIO()
    csv.writer(written, lineterminator="\n").writerows(rows)
    write_text(path, written.getvalue())


def read_csv(path: str | os.PathLike, sets: Iterable[tuple[str, str]]) -> Results:
    """The figures that `write_csv` wrote of the sets (protocol, target). Raises InputError."""
    figures: dict[str, dict[str, Figures]] = {}
    starts = {f"{protocol}.{target}.": (protocol, target) for protocol, target in sets}
    try:
        with open(path, newline="") as file:
            header, *lines = csv.reader(file)
        if header != ["metric", "value"]:
            raise ValueError
        for metric, value in lines:
            start = max((one for one in starts if metric.startswith(one)), key=len, default=None)  # x.1 before x
            if start is not None:
                protocol, target = starts[start]
                of_set = figures.setdefault(protocol, {}).setdefault(target, {})
                of_set[metric.removeprefix(start)] = float(value) if value else None
    except (ValueError, csv.Error):
        raise InputError(f"{path}: is no metrics file of run_batch_eval.py; remove it and score again") from None
    return Results(figures, {}, [], [])
