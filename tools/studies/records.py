"""What a study keeps of its runs: study.csv with their results, and settings.json with their settings.

A study goes on from these two files where the files of its runs are gone.
"""

import csv
import hashlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from config.paths import input_path
from config.rules import EVALUATION, OUTPUT, RULES
from eval.protocols import Results, add_summaries, build_evaluation_sets, flatten
from eval.report import metrics_by_set, write_rows
from tools.studies.plan import Run, without_places
from utils.errors import InputError
from utils.files import write_text

DONE, NOT_FINISHED = "done", "not finished"  # the status of runs; others begin with "failed"
CSV, SETTINGS = "study.csv", "settings.json"
FACTS = ("commit", "versions", "device")  # of `run_facts`, for the page
# The keys on which the weights depend. Those of the evaluation are those on which the results depend besides.
TRAINING = [key for key in RULES if key not in {*OUTPUT, *EVALUATION, "num_workers", "rank_timeout"}]
_COLUMNS = ("preset", "seed", "status", "checkpoint_sha256", *FACTS)  # the others are the settings and metrics

Settings = dict[str, Any]
Row = Mapping[str, Any]  # a row of study.csv by its header


def settings(run: Run) -> Settings:
    """The config of a run, as `portable` has it."""
    return portable(json.dumps(run.config()), run.method.study)


def portable(text: str, study: Path) -> Settings:
    """The config in a JSON text without what differs between machines: the places of the study, the repository and the
    data, and the names of the embeddings that the study computes."""
    text = without_places(text, study)
    if data := os.environ.get("FACE_DATA"):
        text = text.replace(json.dumps(f"{input_path(data)}/")[1:-1], "<FACE_DATA>/")
    return json.loads(re.sub(r'"<study>/teacher/[^"]*"', '"<study>/teacher"', text))


def changed(old: Settings, run: Run, keys: Iterable[str]) -> list[str]:
    """The keys whose values are other ones than in the settings `old`, in words."""
    new = settings(run)
    # A key that the code did not have then has its default.
    return [f"{key} = {old[key]!r} (now {new[key]!r})" for key in keys if key in old and old[key] != new[key]]


def has_files(run: Run) -> bool:
    """Whether the files of a complete run are there, except checkpoints and logs."""
    files = (plan_file(run), run.folder / "config.py", run.results, run.results.with_suffix(".npz"))
    return all(file.exists() for file in files)


def plan_file(run: Run) -> Path:
    """The file with the settings with which a run was started."""
    return run.folder / "plan.json"


def recorded_settings(run: Run) -> Settings | None:
    """The settings of this run if study.csv has its results, else None."""
    row = read_rows(run.method.study).get(_key(run), {})
    known = _read_settings(run.method.study).get(row.get("settings"))
    return None if known is None else known | {"seed": run.seed}


def recorded_results(run: Run) -> tuple[Results, Row]:
    """The metrics of a run in study.csv, and its row with the facts. Nothing is known of single pairs."""
    row = read_rows(run.method.study)[_key(run)]
    sets = [(found.protocol, found.target) for found in build_evaluation_sets(run.method.cfg)]
    try:
        results = Results(metrics_by_set(row.items(), sets), {}, [], [], [])
    except ValueError as error:
        raise InputError(
            f"{run.method.study / CSV}: the row of {run.name} is damaged ({error}); mend it, or remove it to train "
            "this run again"
        ) from None
    add_summaries(results)
    return results, row


def read_rows(study: Path) -> dict[tuple[str, str], Row]:
    """The rows of study.csv that have results, by the names of method and seed. Raises InputError for another file."""
    path = study / CSV
    if not path.exists():
        return {}
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    if not all(set(_COLUMNS) <= row.keys() for row in rows):
        raise InputError(f"{path}: not the table of a study; move it away, or name another --output")
    return {(row["preset"], row["seed"]): row for row in rows if row["status"] == DONE}


def _read_settings(study: Path) -> dict[str, Settings]:
    """Settings without a seed by their checksums, which are in study.csv. Raises InputError for another file."""
    path = study / SETTINGS
    try:
        known = json.loads(path.read_bytes()) if path.exists() else {}
        if all(isinstance(value, dict) for value in known.values()):
            return known
    except (ValueError, AttributeError):
        pass
    raise InputError(f"{path}: not the settings of a study; move it away, or name another --output")


def write_records(
    study: Path, status: Mapping[Run, str], results: Mapping[Run, Results], facts: Mapping[Run, Mapping[str, str]]
) -> None:
    """Write both files. study.csv has a row per run, with facts and the metrics by their result names; what it has of
    other runs stays."""
    known = _read_settings(study)
    rows: dict[tuple[str, str], Row] = {}
    for run, text in status.items():
        name, seed = _key(run)
        own = settings(run)
        own = {key: own[key] for key in (*TRAINING, *EVALUATION) if key != "seed"}
        checksum = hashlib.sha256(json.dumps(own).encode()).hexdigest()[:12]
        known[checksum] = own
        about = {fact: value for fact, value in facts.get(run, {}).items() if fact in _COLUMNS}
        metrics = flatten(results[run].metrics) if run in results else {}
        rows[name, seed] = about | {"preset": name, "seed": seed, "status": text, "settings": checksum} | metrics
    rows |= {key: row for key, row in read_rows(study).items() if key not in rows}
    used = {row.get("settings") for row in rows.values()}
    known = {checksum: value for checksum, value in known.items() if checksum in used}
    write_text(study / SETTINGS, json.dumps(known, indent=1) + "\n")
    columns = list(dict.fromkeys([*_COLUMNS, *(name for row in rows.values() for name in row)]))
    write_rows(study / CSV, [columns, *([row.get(name) for name in columns] for row in rows.values())])


def _key(run: Run) -> tuple[str, str]:
    return run.method.name, str(run.seed)
