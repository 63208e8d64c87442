"""Results as text on the screen and as files: JSON, CSV, and the arrays beside them in .npz."""

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
from eval.protocols import PROTOCOLS, Results, flat
from eval.report.tables import list_metrics
from utils.errors import InputError
from utils.files import atomic_write, write_text
from utils.weights import refuse_inflated


def format_results(results: Results) -> str:
    """One line per metric, with its deviation or threshold in brackets, then what is absent, doubtful or failed."""
    lines = [f"{'set':32} {'metric':36} {'value':>8}"]
    for protocol, targets in results.metrics.items():
        for target, metrics in targets.items():
            for name, value, in_brackets in list_metrics(protocol, metrics):
                lines.append(f"{target:32} {name:36} {value:>8}{in_brackets}")
    lines += [f"WARNING: {warning}" for warning in results.warnings]
    lines += [f"absent: {absent}" for absent in results.absent]
    lines += [f"FAILED: {reason}" for reason in results.failed]
    return "\n".join(lines)


def write_json(path: str | os.PathLike, results: Results, about: dict[str, str]) -> None:
    """Write the metrics, nested by protocol, set and name, with `absent`, `failed` and `warnings`, and with `about`
    (checkpoint, command, versions). The arrays go to the file of the same name with .npz, before it."""
    write_arrays(arrays_path(path), results)
    _write_json(path, {**_content(results), "about": about})


def write_collected_json(path: str | os.PathLike, results: dict[str, Results], about: dict[str, str]) -> None:
    """Write the same for several checkpoints, by name under `checkpoints`, without arrays."""
    _write_json(path, {"checkpoints": {name: _content(one) for name, one in results.items()}, "about": about})


def _content(results: Results) -> dict[str, Any]:
    return {
        **results.metrics, "absent": results.absent, "failed": results.failed, "warnings": results.warnings,
    }  # fmt: skip


def _write_json(path: str | os.PathLike, content: dict[str, Any]) -> None:
    write_text(path, json.dumps(content, indent=1, allow_nan=False) + "\n")


def read_json(path: str | os.PathLike, protocols: Container[str] = tuple(PROTOCOLS)) -> Results:
    """Read what `write_json` wrote, with the arrays of `protocols` if the .npz exists. Raises InputError."""
    try:
        content: dict[str, Any] = json.loads(Path(path).read_text())
        del content["about"]
        absent, failed, warnings = content.pop("absent"), content.pop("failed"), content.pop("warnings", [])
        if not all(isinstance(value, int | float | None) for value in flat(content).values()):
            raise TypeError("a metric is not a number")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise InputError(f"{path}: holds no results; name a file that run_full_eval.py --results-json wrote") from None
    return Results(content, read_arrays(arrays_path(path), protocols), absent, failed, warnings)


def refuse_to_overwrite(path: str | os.PathLike, with_arrays: bool) -> None:
    """Raise InputError if results written to `path`, or their arrays, would replace a file that is not ours.

    Call it before the scoring, which takes long.
    """
    files = [(Path(path), _is_results), (arrays_path(path), _is_arrays)]
    for file, is_ours in files[: 1 + with_arrays]:
        if os.path.lexists(file) and not is_ours(file):
            raise InputError(f"{file}: exists, and holds no results; name another file, or overwrite it with --force")


def _is_results(path: Path) -> bool:
    try:
        content = json.loads(path.read_text())
        return "about" in content and ("checkpoints" in content or {"absent", "failed"} <= set(content))
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def _is_arrays(path: Path) -> bool:
    """Whether the archive's members are named as `write_arrays` names them."""
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
        for target, named in targets.items()
        for name, array in named.items()
    }
    with atomic_write(path) as file:
        np.savez(file, **arrays)


def read_arrays(path: str | os.PathLike, protocols: Container[str]) -> dict[str, dict[str, Arrays]]:
    """Protocol -> set -> name -> array, of `protocols`; empty if the file does not exist. Raises InputError."""
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
    write_rows(path, [("metric", "value"), *flat(results.metrics).items()])


def write_rows(path: str | os.PathLike, rows: Iterable[Iterable[Any]]) -> None:
    """Write a CSV file; None becomes an empty field."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(path, text.getvalue())


def read_csv(path: str | os.PathLike, sets: Iterable[tuple[str, str]]) -> Results:
    """Read the metrics that `write_csv` wrote, of the sets (protocol, set). Raises InputError."""
    metrics: dict[str, dict[str, Metrics]] = {}
    prefixes = {f"{protocol}.{target}.": (protocol, target) for protocol, target in sets}
    try:
        with open(path, newline="") as file:
            header, *lines = csv.reader(file)
        if header != ["metric", "value"]:
            raise ValueError
        for name, value in lines:
            # The longest, because the name of a set may begin with that of another: "x.1" and "x".
            prefix = max(filter(name.startswith, prefixes), key=len, default=None)
            if prefix is not None:
                protocol, target = prefixes[prefix]
                of_set = metrics.setdefault(protocol, {}).setdefault(target, {})
                of_set[name.removeprefix(prefix)] = float(value) if value else None
    except (ValueError, csv.Error):
        raise InputError(
            f"{path}: not a metrics file of run_batch_eval.py; remove it and score the checkpoint again"
        ) from None
    return Results(metrics, {}, [], [], [])
