"""study.csv: the settings and the results of each run, from which a study goes on if the files of its runs are gone."""

import csv
import io
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from config import BASE, ROOT, load_config
from config.rules import EVALUATION, OUTPUT, RULES
from eval.protocols import Results, add_summaries, build_evaluation_sets, flatten
from eval.report import metrics_by_set
from tools.studies.plan import Run, without_places
from utils.errors import InputError
from utils.files import write_text

DONE, NOT_FINISHED = "done", "not finished"  # the status of runs; others begin with "failed"
CSV = "study.csv"
FACTS = ("commit", "versions", "device")  # of `run_facts`, for the page
# The keys on which the weights depend. Those of the evaluation are those on which the results depend besides.
TRAINING = [key for key in RULES if key not in {*OUTPUT, *EVALUATION, "num_workers", "rank_timeout"}]
_COLUMNS = ("preset", "seed", "status", "settings", "checkpoint_sha256", *FACTS)  # the others are metrics

Row = Mapping[str, Any]  # a row of study.csv by its header


def settings(run: Run) -> dict[str, Any]:
    """The config of a run, without the places of study, repository and data."""
    return json.loads(without_places(json.dumps(run.config()), run.method.study))


@cache
def _default_settings() -> dict[str, Any]:
    return json.loads(without_places(json.dumps(load_config(BASE)), ROOT / "output"))


def changed(old: Mapping[str, Any], run: Run, keys: Iterable[str]) -> list[str]:
    """The keys whose values are other ones than in the settings `old`, in words. A key that is missing there has its
    default: the code did not have it then, or it was left out, as in study.csv."""
    old, new = _default_settings() | old, settings(run)
    return [f"{key} = {old[key]!r} (now {new[key]!r})" for key in keys if old[key] != new[key]]


def read_rows(study: Path) -> dict[tuple[str, str], Row]:
    """The rows of study.csv that have results, by the names of method and seed. Raises InputError for another file."""
    path = study / CSV
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not all(set(_COLUMNS) <= row.keys() for row in rows):
        raise InputError(
            f"{path}: lacks columns, such as the settings of the runs; remove it, or name another --output"
        )
    return {(row["preset"], row["seed"]): row for row in rows if row["status"] == DONE}


def recorded_settings(run: Run) -> dict[str, Any] | None:
    """The settings with which study.csv has results of this run; None if it has none."""
    row = read_rows(run.method.study).get(_key(run))
    return json.loads(row["settings"]) if row else None


def recorded_results(run: Run) -> tuple[Results, Row]:
    """The metrics of a run in study.csv, and its row with the facts. Nothing is known of single pairs."""
    row = read_rows(run.method.study)[_key(run)]
    sets = [(found.protocol, found.target) for found in build_evaluation_sets(run.method.cfg)]
    results = Results(metrics_by_set(row.items(), sets), {}, [], [], [])
    add_summaries(results)
    return results, row


def write_rows(
    study: Path, status: Mapping[Run, str], results: Mapping[Run, Results], facts: Mapping[Run, Mapping[str, str]]
) -> None:
    """Write study.csv: a row per run, with the settings that are not the defaults, facts, and the metrics by their
    result names. The results of other runs that are there already stay."""
    rows: dict[tuple[str, str], Row] = {}
    for run, text in status.items():
        name, seed = _key(run)
        about = {fact: value for fact, value in facts.get(run, {}).items() if fact in _COLUMNS}
        metrics = flatten(results[run].metrics) if run in results else {}
        rows[name, seed] = about | {"preset": name, "seed": seed, "status": text, "settings": _text(run)} | metrics
    rows |= {key: row for key, row in read_rows(study).items() if key not in rows}
    columns = dict.fromkeys([*_COLUMNS, *(name for row in rows.values() for name in row)])
    file = io.StringIO()
    writer = csv.DictWriter(file, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows.values())
    write_text(study / CSV, file.getvalue())


def _key(run: Run) -> tuple[str, str]:
    return run.method.name, str(run.seed)


def _text(run: Run) -> str:
    defaults, own = _default_settings(), settings(run)
    return json.dumps({key: own[key] for key in (*TRAINING, *EVALUATION) if own[key] != defaults[key]})
