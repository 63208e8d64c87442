"""Evaluation of all checkpoints of a folder: a report for each, and a summary that compares them."""

import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from eval.best import WHY_NO_VALUE, Criterion
from eval.protocols import (
    PROTOCOLS,
    Results,
    add_summaries,
    embeddings_file,
    evaluate,
    flatten,
    open_images,
    warnings_of,
)
from eval.report import (
    ScoredCheckpoint,
    Table,
    format_results,
    markdown,
    methods_table,
    notes_on,
    read_csv,
    read_json,
    write_csv,
    write_json,
    write_report,
    write_rows,
)
from eval.sets import EvaluationSet, SetCache
from utils.about import run_facts
from utils.distributed import on_all_ranks, on_rank_0
from utils.errors import InputError, describe_error
from utils.files import sha256, write_text
from utils.weights import step_in_name

SOURCE = "_source.json"  # suffix of the file that records the weights, settings and sets of a report
METRICS_VERSION = 2  # raised when the protocols compute other metrics, so that older reports are made again


def find_checkpoints(folder: str | os.PathLike, suffix: str) -> list[Path]:
    """The files of the folder whose names end in the suffix, in the order of the steps at the start of their names.
    Names without a step come last. Raises InputError if there is no such file."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder of checkpoints")
    paths = [path for path in Path(folder).iterdir() if path.name.endswith(suffix) and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: no file name ends in {suffix!r}; name another ending with --checkpoint-suffix")

    def order(path: Path) -> tuple[bool, int, str]:
        step = step_in_name(path.name)
        return step is None, step or 0, path.name

    return sorted(paths, key=order)


class BatchEvaluation:
    """Scores checkpoints on `sets` and writes a report for each into the folder `reports`.

    load_network: path of a checkpoint -> network, built by build_backbone; dtype: the type in which networks compute;
    settings: other values that the results depend on (JSON types); save_json: also write metrics and arrays, as JSON
    and .npz; embeddings: the folder for embeddings, or None; cache_gb: see `SetCache`; criterion: decides which
    checkpoint is marked as the best, or None.

    All ranks call `score`; only rank 0 calls `finish`. scored: the checkpoints with results, in the order of the calls;
    failed: "checkpoint: reason" of the checkpoints that could not be loaded; vanished: those that were removed after
    they were listed; best and best_note: the best checkpoint, for JSON files and in words, known after `finish`
    (None and the reason if none has a value).
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        load_network: Callable[[Path], nn.Module],
        dtype: torch.dtype,
        settings: dict[str, Any],
        reports: Path,
        save_json: bool,
        embeddings: str | None,
        cache_gb: float,
        criterion: Criterion | None = None,
    ) -> None:
        self.sets, self.load_network, self.dtype, self.reports = sets, load_network, dtype, reports
        self.settings = {**settings, "dtype": str(dtype), "metrics": METRICS_VERSION}
        self.save_json, self.embeddings, self._criterion = save_json, embeddings, criterion
        self.cache = SetCache(cache_gb)
        self.scored: list[ScoredCheckpoint] = []
        self.failed: list[str] = []
        self.vanished: list[str] = []
        self.best: dict[str, Any] | None = None
        self.best_note = ""
        self._versions: dict[EvaluationSet, dict[str, Any]] = {}
        self._known_warnings: dict[EvaluationSet, list[str]] = {}

    def score(self, path: Path, device: torch.device, force: bool) -> str:
        """Score the checkpoint. Without `force`, one is skipped if its report has all results that are wanted.

        Returns the text to print about it.
        """
        try:
            # Before the weights are read: if the file changes in between, the report counts as outdated.
            source = on_rank_0(lambda: self._source(path))
            if not force and on_rank_0(lambda: self._reuse_report(path, source)):
                return "has a report of the same weights and settings, skipped"
            network = on_all_ranks(lambda: self.load_network(path))
            network = network.to(device, memory_format=torch.channels_last)
            folder = self.embeddings and Path(self.embeddings, path.stem)
            results = evaluate(network, self.sets, device, self.dtype, self.cache, folder)
        except (InputError, OSError) as error:
            if on_rank_0(lambda: not path.exists()):  # a run that is still training has pruned it
                self.vanished.append(f"not scored: {path.name}: removed after the evaluation had started")
                return "not scored: removed after the evaluation had started"
            self.failed.append(f"{path.name}: {describe_error(error)}")
            return f"FAILED: {describe_error(error)}"
        on_rank_0(lambda: self._write_metrics(path, source, results))
        return f"{network.loaded}\n{format_results(results)}"

    def finish(self, plots: Path, about: dict[str, str]) -> Table:
        """Mark the best checkpoint; write summary.csv, summary.md, report.html and the plots; return the table of the
        summary."""
        self._mark_best()
        metrics = {checkpoint.label: checkpoint.results.metrics for checkpoint in self.scored}
        table = methods_table("Summary [%]", metrics, "checkpoint")
        notes = [*self.vanished, *(f"failed: {reason}" for reason in self.failed)]
        notes += [self.best_note] if self.best_note else []
        write_rows(self.reports / "summary.csv", self._summary_rows())
        lines = "".join(f"- {note}\n" for note in [*notes, *notes_on(self.scored)])
        write_text(self.reports / "summary.md", f"{markdown(table)}\n\n{lines}")
        images_of = partial(open_images, self.sets, self.cache)
        write_report(self.reports / "report.html", plots, self.scored, about, images_of, notes)
        return table

    def _mark_best(self) -> None:
        """Set `best` and `best_note`, and mark this checkpoint."""
        if self._criterion is None or not self.scored:
            return
        values = [self._criterion.value(flatten(checkpoint.results.metrics)) for checkpoint in self.scored]
        position = self._criterion.best(values)
        if position is None:
            self.best_note = f"no best checkpoint: none has a value of {self._criterion.name}, {WHY_NO_VALUE}"
            return
        chosen = self.scored[position] = self.scored[position]._replace(is_best=True)
        value, metric = values[position], self._criterion.name
        self.best = {"checkpoint": chosen.name, "step": chosen.step, "metric": metric, "value": value}
        shown = self._criterion.display.text(value)
        self.best_note = f"best checkpoint: {chosen.name}, by {self._criterion.meaning}: {shown}"

    def failures(self) -> list[str]:
        """ "checkpoint: reason" for checkpoints that could not be loaded, then for sets that could not be scored."""
        failed_sets = (
            f"{checkpoint.name}: {reason}" for checkpoint in self.scored for reason in checkpoint.results.failed
        )
        return [*self.failed, *failed_sets]

    def _report_path(self, path: Path, suffix: str) -> Path:
        return self.reports / f"{path.stem}_metrics{suffix}"

    def _existing(self) -> list[EvaluationSet]:
        return [evaluation_set for evaluation_set in self.sets if evaluation_set.find() is not None]

    def _reuse_report(self, path: Path, source: dict[str, Any]) -> bool:
        """Add the results of the checkpoint's report, if it was made from `source` and has every set.

        Returns whether they were added.
        """
        if not self._has_report(path, source):
            return False
        existing = self._existing()
        keys = [evaluation_set.key for evaluation_set in existing]
        try:
            if self.save_json:
                results = read_json(self._report_path(path, ".json"))
            else:
                results = read_csv(
                    self._report_path(path, ".csv"), [evaluation_set.key for evaluation_set in self.sets]
                )
                for evaluation_set in existing:
                    results.warnings.extend(self._warnings(evaluation_set))
        except InputError:
            return False
        if not all(target in results.metrics.get(protocol, {}) for protocol, target in keys):
            return False
        absent = [evaluation_set.describe_absent() for evaluation_set in self.sets if evaluation_set not in existing]
        metrics, arrays = (_select(values, keys) for values in (results.metrics, results.arrays))
        results = Results(metrics, arrays, absent, [], results.warnings)
        add_summaries(results)
        self._add(path, results)
        return True

    def _has_report(self, path: Path, source: dict[str, Any]) -> bool:
        """Whether the checkpoint has a report that was made from `source`, or from more sets, with all its files."""
        try:
            earlier = json.loads(self._report_path(path, SOURCE).read_bytes())
            same = all(earlier[key] == source[key] for key in ("sha256", "settings"))
            same &= all(earlier["sets"].get(name) == version for name, version in source["sets"].items())
            is_there = (file in earlier["files"] and Path(self.reports, file).is_file() for file in source["files"])
            return same and all(is_there)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return False

    def _source(self, path: Path) -> dict[str, Any]:
        """What the report of a checkpoint depends on, and its files."""
        sets = self._existing()
        files = [self._report_path(path, suffix) for suffix in (".csv", *((".json", ".npz") if self.save_json else ()))]
        if self.embeddings:
            files += [embeddings_file(Path(self.embeddings, path.stem), *evaluation_set.key) for evaluation_set in sets]
        return {
            "sha256": sha256(path),
            "settings": self.settings,
            "sets": {evaluation_set.result_name: self._version(evaluation_set) for evaluation_set in sets},
            "files": [os.path.relpath(file, self.reports) for file in files],
        }

    def _version(self, evaluation_set: EvaluationSet) -> dict[str, Any]:
        """The set's `version`, which is computed only once, because a set may have many files."""
        if evaluation_set not in self._versions:
            self._versions[evaluation_set] = evaluation_set.version()
        return self._versions[evaluation_set]

    def _warnings(self, evaluation_set: EvaluationSet) -> list[str]:
        """The warnings about a set, which CSV files do not contain. Only the first call opens the set."""
        protocol = PROTOCOLS[evaluation_set.protocol]
        if protocol.warn is None:
            return []
        if evaluation_set not in self._known_warnings:
            images = protocol.open(evaluation_set.find())
            self._known_warnings[evaluation_set] = warnings_of(evaluation_set, images)
        return self._known_warnings[evaluation_set]

    def _write_metrics(self, path: Path, source: dict[str, Any], results: Results) -> None:
        self._report_path(path, SOURCE).unlink(missing_ok=True)
        write_csv(self._report_path(path, ".csv"), results)
        if self.save_json:
            about = {"checkpoint": str(path), **run_facts()}
            write_json(self._report_path(path, ".json"), results, about)
        write_text(self._report_path(path, SOURCE), json.dumps(source, indent=1) + "\n")
        self._add(path, results)

    def _add(self, path: Path, results: Results) -> None:
        if results.arrays:  # only the arrays of the last checkpoint are kept, because those of IJB-C take 0.25 GB
            self.scored = [
                checkpoint._replace(results=checkpoint.results._replace(arrays={})) for checkpoint in self.scored
            ]
        self.scored.append(ScoredCheckpoint(path.stem, results))

    def _summary_rows(self) -> list[list]:
        """One row per checkpoint, one column per metric, and the best of each column in the last row."""
        metrics = [flatten(checkpoint.results.metrics) for checkpoint in self.scored]
        displays = {
            f"{protocol}.{target}.{metric}": PROTOCOLS[protocol].display(metric)
            for checkpoint in self.scored
            for protocol, targets in checkpoint.results.metrics.items()
            for target, values in targets.items()
            for metric in values
        }
        rows = [
            [checkpoint.name, checkpoint.step, int(checkpoint.is_best) or None, *map(values.get, displays)]
            for checkpoint, values in zip(self.scored, metrics, strict=True)
        ]
        best = [display.best([values.get(column) for values in metrics]) for column, display in displays.items()]
        return [["checkpoint", "step", "is_best", *displays], *rows, ["best", None, None, *best]]


def _select(values: dict[str, dict], keys: Sequence[tuple[str, str]]) -> dict[str, dict]:
    """The entries of `values`, protocol -> set -> ..., that belong to the sets with these keys."""
    selected: dict[str, dict] = {}
    for protocol, target in keys:
        if target in values.get(protocol, {}):
            selected.setdefault(protocol, {})[target] = values[protocol][target]
    return selected
