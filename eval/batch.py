"""The checkpoints of a folder, scored one after another: a report for each, and a summary that compares them."""

import os
from pathlib import Path

import torch
from easydict import EasyDict

from backbones import build_backbone
from eval.protocols import (
    PROTOCOLS,
    Results,
    configured_sets,
    describe_absent,
    embeddings_file,
    evaluate,
    find_set,
    flat,
    open_set,
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
from eval.sets import Sets
from utils.about import describe_run
from utils.distributed import on_all_ranks, on_rank_0
from utils.errors import InputError
from utils.files import write_text
from utils.precision import compute_type
from utils.weights import step_in_name


def find_checkpoints(folder: str | os.PathLike, suffix: str) -> list[Path]:
    """The files of the folder whose names end in the suffix, by the step at the start of their names; names without a
    step come last. Raises InputError if there are none."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder of checkpoints")
    paths = [path for path in Path(folder).iterdir() if path.name.endswith(suffix) and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: no file name ends in {suffix!r}; name another ending with --checkpoint-suffix")

    def order(path: Path) -> tuple[bool, int, str]:
        step = step_in_name(path.name)
        return step is None, step or 0, path.name

    return sorted(paths, key=order)


class Batch:
    """Scores checkpoints by `protocols` and writes a report for each into the folder `reports`.

    All ranks call `score`; only rank 0 calls `finish`. scored: in the order of the calls; failed: "checkpoint: reason"
    of checkpoints that could not be loaded.
    """

    def __init__(
        self,
        cfg: EasyDict,
        protocols: list[str],
        reports: Path,
        save_json: bool,
        embeddings: str | None,
        cache_gb: float,
    ) -> None:
        self.cfg, self.protocols, self.reports = cfg, protocols, reports
        self.save_json, self.embeddings = save_json, embeddings
        self.sets = Sets(cache_gb)
        self.scored: list[ScoredCheckpoint] = []
        self.failed: list[str] = []
        self._known_warnings: dict[tuple[str, str], list[str]] = {}

    def score(self, path: Path, device: torch.device, force: bool) -> str:
        """Score the checkpoint, unless it has a complete report that is newer and `force` is not set.

        Returns what to print about it.
        """
        try:
            if not force and on_rank_0(lambda: self._reuse_report(path)):
                return "has a complete report, skipped"
            network = on_all_ranks(lambda: build_backbone(EasyDict(self.cfg, init_from=str(path))))
            network = network.to(device, memory_format=torch.channels_last)
            folder = self.embeddings and Path(self.embeddings, path.stem)
            dtype = compute_type(self.cfg.dtype, device)
            results = evaluate(network, self.cfg, self.protocols, device, dtype, self.sets, folder)
        except (InputError, OSError) as error:
            self.failed.append(f"{path.name}: {error}")
            return f"FAILED: {error}"
        on_rank_0(lambda: self._write_metrics(path, results))
        return format_results(results)

    def finish(self, plots: Path, about: dict[str, str]) -> Table:
        """Write summary.csv, summary.md, report.html and the plots; return the table of the summary."""
        metrics = {one.name: one.results.metrics for one in self.scored}
        table = methods_table("Summary [%]", metrics, "checkpoint")
        failed = [f"failed: {reason}" for reason in self.failed]
        write_rows(self.reports / "summary.csv", self._summary_rows())
        notes = "".join(f"- {note}\n" for note in [*failed, *notes_on(self.scored)])
        write_text(self.reports / "summary.md", f"{markdown(table)}\n\n{notes}")

        def open_images(name: str, target: str) -> object:
            return open_set(self.cfg, name, target, self.sets)

        write_report(self.reports / "report.html", plots, self.scored, about, open_images, failed)
        return table

    def _report_path(self, path: Path, suffix: str) -> Path:
        return self.reports / f"{path.stem}_metrics{suffix}"

    def _reuse_report(self, path: Path) -> bool:
        """Take the results from the checkpoint's report, if it is newer and has every set that exists."""
        sets = configured_sets(self.cfg, self.protocols)
        existing = [(name, target) for name, target in sets if find_set(self.cfg, name, target) is not None]
        csv_path, json_path, npz_path = (self._report_path(path, suffix) for suffix in (".csv", ".json", ".npz"))
        files = [csv_path, json_path, npz_path] if self.save_json else [csv_path]
        if self.embeddings:
            files += [embeddings_file(Path(self.embeddings, path.stem), name, target) for name, target in existing]
        changed = path.stat().st_mtime_ns
        if not all(file.is_file() and file.stat().st_mtime_ns > changed for file in files):
            return False
        try:
            results = read_json(json_path) if self.save_json else read_csv(csv_path, sets)
            if not self.save_json:
                results.warnings.extend(warning for where in existing for warning in self._warnings(*where))
        except InputError:
            return False
        if not all(target in results.metrics.get(name, {}) for name, target in existing):
            return False
        absent = [describe_absent(self.cfg, name, target) for name, target in sets if (name, target) not in existing]
        metrics, arrays = (_select(values, existing) for values in (results.metrics, results.arrays))
        self._add(path, Results(metrics, arrays, absent, [], results.warnings))
        return True

    def _warnings(self, name: str, target: str) -> list[str]:
        """The warnings about a set, which is opened at the first call only. CSV files do not contain them."""
        if PROTOCOLS[name].warn is None:
            return []
        if (name, target) not in self._known_warnings:
            images = PROTOCOLS[name].open(find_set(self.cfg, name, target))
            self._known_warnings[name, target] = warnings_of(name, target, images)
        return self._known_warnings[name, target]

    def _write_metrics(self, path: Path, results: Results) -> None:
        write_csv(self._report_path(path, ".csv"), results)
        if self.save_json:
            about = {"checkpoint": str(path), "run": describe_run()}
            write_json(self._report_path(path, ".json"), results, about)
        self._add(path, results)

    def _add(self, path: Path, results: Results) -> None:
        if results.arrays:  # only the last checkpoint's are kept: those of IJB-C take a quarter of a GB
            self.scored = [one._replace(results=one.results._replace(arrays={})) for one in self.scored]
        self.scored.append(ScoredCheckpoint(path.stem, results))

    def _summary_rows(self) -> list[list]:
        """One row per checkpoint, one column per metric, and the best of each column in the last row."""
        values = {one.name: flat(one.results.metrics) for one in self.scored}
        displays = {
            f"{protocol}.{target}.{metric}": PROTOCOLS[protocol].display(metric)
            for one in self.scored
            for protocol, targets in one.results.metrics.items()
            for target, metrics in targets.items()
            for metric in metrics
        }
        rows = [[one.name, one.step, *(values[one.name].get(metric) for metric in displays)] for one in self.scored]
        best = [
            display.best([of_checkpoint.get(metric) for of_checkpoint in values.values()])
            for metric, display in displays.items()
        ]
        return [["checkpoint", "step", *displays], *rows, ["best", None, *best]]


def _select(values: dict[str, dict], sets: list[tuple[str, str]]) -> dict[str, dict]:
    """The entries of protocol -> set -> ... that belong to the sets (protocol, set)."""
    selected: dict[str, dict] = {}
    for name, target in sets:
        if target in values.get(name, {}):
            selected.setdefault(name, {})[target] = values[name][target]
    return selected
