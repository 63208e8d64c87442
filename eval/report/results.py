"""Results as text on the screen and as files: JSON and CSV for metrics, .npz for arrays."""

import csv
import io
import json
import os
import zipfile
from collections.abc import Container, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from eval.protocol import Arrays, Metrics
from eval.protocols import PROTOCOLS, Results, flatten
from eval.report.tables import footnote, list_metrics
from utils.errors import InputError
from utils.files import atomic_write, write_text
from utils.weights import refuse_inflated


def format_results(results: Results) -> str:
    """One line per metric, with its deviation or threshold in brackets; then the meaning of the mark of values that are
    not measurable, warnings, absent sets and failed sets."""
    lines = [f"{'set':32} {'metric':36} {'value':>8}"]
    values = []
    for protocol, targets in results.metrics.items():
        for target, metrics in targets.items():
            for name, value, in_brackets in list_metrics(protocol, metrics):
                lines.append(f"{target:32} {name:36} {value:>8}{in_brackets}")
                values.append(value)
    lines += filter(None, [footnote(values)])
    lines += [f"WARNING: {warning}" for warning in results.warnings]
    lines += [f"absent: {absent}" for absent in results.absent]
    lines += [f"FAILED: {reason}" for reason in results.failed]
    return "\n".join(lines)


def write_json(path: str | os.PathLike, results: Results, about: dict[str, str]) -> None:
    """Write the metrics, nested by protocol, set and name, together with the names of those that are `not_measurable`,
    with `absent`, `failed` and `warnings`, and with `about` (checkpoint, command, versions). The arrays are written
    first, to the file of the same name with .npz."""
    write_arrays(arrays_path(path), results)
    _write_json(path, {**_content(results), "about": about})


def write_collected_json(
    path: str | os.PathLike, results: dict[str, Results], best: dict[str, Any] | None, about: dict[str, str]
) -> None:
    """Write the results of several checkpoints as `write_json` does, by name under `checkpoints`, without arrays.

    best: which one is the best, and why; None if none is.
    """
    contents = {name: _content(checkpoint_results) for name, checkpoint_results in results.items()}
    _write_json(path, {"checkpoints": contents, "best": best, "about": about})


def _content(results: Results) -> dict[str, Any]:
    not_measurable = [
        f"{protocol}.{target}.{name}"
        for protocol, targets in results.metrics.items()
        for target, metrics in targets.items()
        for name in metrics
        if PROTOCOLS[protocol].display(name).mark(metrics)
    ]
    return {
        **results.metrics, "not_measurable": not_measurable, "absent": results.absent, "failed": results.failed,
        "warnings": results.warnings,
    }  # fmt: skip


def _write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | os.PathLike, protocols: Container[str] = tuple(PROTOCOLS)) -> Results:
    """Read the results that `write_json` wrote, with the arrays of `protocols` if the .npz exists.

    Raises InputError for a file without results.
    """
    try:
        content: dict[str, Any] = json.loads(Path(path).read_bytes())
        del content["about"]
        content.pop("not_measurable", None)  # it follows from the numbers of pairs
        absent, failed, warnings = content.pop("absent"), content.pop("failed"), content.pop("warnings", [])
        if not all(isinstance(value, int | float | None) for value in flatten(content).values()):
            raise TypeError("a metric is not a number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: holds no results; name a file that run_full_eval.py --results-json wrote") from None
    return Results(content, read_arrays(arrays_path(path), protocols), absent, failed, warnings)


def refuse_to_overwrite(path: str | os.PathLike, with_arrays: bool) -> None:
    """Raise InputError if results or, `with_arrays`, their arrays would replace a file that holds something else.

    Call it before the evaluation, which takes long.
    """
    files = [(Path(path), _is_results), (arrays_path(path), _is_arrays)]
    for file, is_replaceable in files[: 1 + with_arrays]:
        if os.path.lexists(file) and not is_replaceable(file):
            raise InputError(f"{file}: exists, and holds no results; name another file, or overwrite it with --force")


def _is_results(path: Path) -> bool:
    try:
        content = json.loads(path.read_bytes())
        return "about" in content and ("checkpoints" in content or {"absent", "failed"} <= set(content))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _is_arrays(path: Path) -> bool:
    """Whether the names of the archive's members are of the form that `write_arrays` gives them."""
    try:
        with zipfile.ZipFile(path) as archive:
            return all(name.partition("/")[0] in PROTOCOLS and name.endswith(".npy") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


def arrays_path(path: str | os.PathLike) -> Path:
    """The .npz with the arrays of the results in `path`."""
    path = Path(path)
    return path.with_name(path.name.removesuffix(".json") + ".npz")


def write_arrays(path: str | os.PathLike, results: Results) -> None:
    """Write an .npz with the arrays of every set, named protocol/set/name."""
    arrays = {
        f"{protocol}/{target}/{name}": array
        for protocol, targets in results.arrays.items()
        for target, arrays_of_set in targets.items()
        for name, array in arrays_of_set.items()
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike, protocols: Container[str]) -> dict[str, dict[str, Arrays]]:
    """The arrays that `write_arrays` wrote for these protocols: protocol -> set -> name -> array.

    Empty if the file does not exist. Raises InputError for a broken file.
    """
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
    except Exception as error:  # a broken archive may raise almost any exception
        raise InputError(
            f"{path}: broken, or not written by run_full_eval.py; remove it and score the checkpoint again"
        ) from error
    return arrays


def write_csv(path: str | os.PathLike, results: Results) -> None:
    """Write one line "metric,value" per metric; the value is empty if the metric does not exist."""
    write_rows(path, [("metric", "value"), *flatten(results.metrics).items()])


def write_rows(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; None becomes an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: str | os.PathLike, sets: Iterable[tuple[str, str]]) -> Results:
    """Read the metrics of these sets, (protocol, set), that `write_csv` wrote. Raises InputError for another file."""
    try:
        with open(path, newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        if header != ["metric", "value"]:
            raise ValueError
        metrics = metrics_by_set(lines, sets)
    except (ValueError, csv.Error):
        raise InputError(
            f"{path}: not a metrics file of run_batch_eval.py; remove it and score the checkpoint again"
        ) from None
    return Results(metrics, {}, [], [], [])


def metrics_by_set(fields: Iterable[tuple[str, str]], sets: Iterable[tuple[str, str]]) -> dict[str, dict[str, Metrics]]:
    """The metrics of these sets, (protocol, set), nested by protocol and set, from fields of CSV files by their result
    names. Raises ValueError if one is not a number."""
    metrics: dict[str, dict[str, Metrics]] = {}
    prefixes = {f"{protocol}.{target}.": (protocol, target) for protocol, target in sets}
    for name, value in fields:
        # The longest prefix, because the name of a set may begin with the name of another set: "x.1" and "x".
        prefix = max(filter(name.startswith, prefixes), key=len, default=None)
        if prefix is not None:
            protocol, target = prefixes[prefix]
            metrics.setdefault(protocol, {}).setdefault(target, {})[name.removeprefix(prefix)] = _number(value)
    return metrics


def _number(text: str) -> float | None:
    """The number in a field of a CSV file; None if it is empty. Raises ValueError."""
    if not text:
        return None
    return int(text) if text.isdecimal() else float(text)  # numbers of pairs stay integers
