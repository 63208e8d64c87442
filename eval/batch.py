"""The checkpoints of a folder, one after another: a report each, and what puts them side by side."""

import os
from pathlib import Path

import torch
from easydict import EasyDict

from backbones import build_backbone
from eval.protocols import Results, absence, embeddings_file, evaluate, find, flat, open_set, wanted
from eval.report.results import read_csv, read_json, screen, write_csv, write_json, write_rows
from eval.report.tables import Table, best, markdown, methods_table
from eval.report.writing import ScoredCheckpoint, left_out, write_report
from eval.sets import Sets
from utils.about import describe_run
from utils.distributed import on_all_ranks, on_rank_0
from utils.errors import InputError
from utils.files import write_text
from utils.precision import compute_type
from utils.weights import step_in_name


def find_checkpoints(folder: str | os.PathLike, suffix: str) -> list[Path]:
    """The files of the folder that end in the suffix: by the step that begins their names, names without one last."""
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: no such folder of checkpoints")
    paths = [path for path in Path(folder).iterdir() if path.name.endswith(suffix) and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: no file's name ends in {suffix!r}; --checkpoint-suffix names another ending")

    def order(path: Path) -> tuple[bool, int, str]:
        step = step_in_name(path.name)
        return step is None, step or 0, path.name

    return sorted(paths, key=order)


class Batch:
    """Scores checkpoints by the protocols `names` and keeps a report of each in the folder `reports`.

    All ranks call `score`; `finish` is rank 0's. failed: "checkpoint: reason" of those that could not be loaded.
    """

    def __init__(
        self, cfg: EasyDict, names: list[str], reports: Path, save_json: bool, embeddings: str | None, cache_gb: float
    ) -> None:
        self.cfg, self.names, self.reports, self.save_json, self.embeddings = cfg, names, reports, save_json, embeddings
        self.sets = Sets(cache_gb)
        self.scored: list[ScoredCheckpoint] = []
        self.failed: list[str] = []

    def score(self, path: Path, device: torch.device, force: bool) -> str:
        """Score the checkpoint, unless it has a complete report newer than itself and `force` is not set.

        Gives what there is to say of it.
        """
        try:
            if not force and on_rank_0(lambda: self._reuse(path)):
                return "has a complete report, skipped"
            network = on_all_ranks(lambda: build_backbone(EasyDict(self.cfg, init_from=str(path))))
            network = network.to(device, memory_format=torch.channels_last)
            folder = self.embeddings and Path(self.embeddings, path.stem)
            dtype = compute_type(self.cfg.dtype, device)
            results = evaluate(network, self.cfg, self.names, device, dtype, self.sets, folder)
        except (InputError, OSError) as error:
            self.failed.append(f"{path.name}: {error}")
            return f"FAILED: {error}"
        on_rank_0(lambda: self._keep(path, results))
        return screen(results)

    def finish(self, plots: Path, about: dict[str, str]) -> Table:
        """Write summary.csv, summary.md, report.html and the plots; gives the summary."""
        table = methods_table("Summary [%]", {one.name: one.results.figures for one in self.scored}, "checkpoint")
        failed = [f"failed: {why}" for why in self.failed]
        write_rows(self.reports / "summary.csv", self._summary_rows())
        notes = "".join(f"- {note}\n" for note in [*failed, *left_out(self.scored)])
        write_text(self.reports / "summary.md", f"{markdown(table)}\n\n{notes}")

        def open_pairs(target: str) -> object:
            return open_set(self.cfg, "verification", target, self.sets)

        write_report(self.reports / "report.html", plots, self.scored, about, open_pairs, failed)
        return table

    def _report(self, path: Path, suffix: str) -> Path:
        return self.reports / f"{path.stem}_metrics{suffix}"

    def _reuse(self, path: Path) -> bool:
        """Take the checkpoint's report where it is newer than it and has every set that is there."""
        sets = wanted(self.cfg, self.names)
        there = [(name, target) for name, target in sets if find(self.cfg, name, target) is not None]
        as_csv, as_json, arrays = (self._report(path, suffix) for suffix in (".csv", ".json", ".npz"))
        written = [as_csv, as_json, arrays] if self.save_json else [as_csv]
        if self.embeddings:
            written += [embeddings_file(Path(self.embeddings, path.stem), name, target) for name, target in there]
        since = path.stat().st_mtime_ns
        if not all(file.is_file() and file.stat().st_mtime_ns > since for file in written):
            return False
        try:
            results = read_json(as_json) if self.save_json else read_csv(as_csv, sets)
        except InputError:
            return False
        if not all(target in results.figures.get(name, {}) for name, target in there):
            return False
        absent = [absence(self.cfg, name, target) for name, target in sets if (name, target) not in there]
        figures, arrays = (_only(part, there) for part in (results.figures, results.arrays))
        self._add(path, Results(figures, arrays, absent, []))
        return True

    def _keep(self, path: Path, results: Results) -> None:
        write_csv(self._report(path, ".csv"), results)
        if self.save_json:
            about = {"checkpoint": str(path), "run": describe_run()}
            write_json(self._report(path, ".json"), results, about)
        self._add(path, results)

    def _add(self, path: Path, results: Results) -> None:
        if results.arrays:  # of the last checkpoint alone: those of IJB-C take a quarter of a GB
            self.scored = [one._replace(results=one.results._replace(arrays={})) for one in self.scored]
        self.scored.append(ScoredCheckpoint(path.stem, results))

    def _summary_rows(self) -> list[list]:
        """A row a checkpoint, a column a figure, and the best of each column in the last row."""
        figures = {one.name: flat(one.results.figures) for one in self.scored}
        names = {
            f"{protocol}.{target}.{name}": name
            for one in self.scored
            for protocol, targets in one.results.figures.items()
            for target, values in targets.items()
            for name in values
        }
        metrics = list(names)
        columns = {metric: [values.get(metric) for values in figures.values()] for metric in metrics}
        rows = [[one.name, one.step, *(figures[one.name].get(metric) for metric in metrics)] for one in self.scored]
        top = ["best", None, *(best(names[metric], values) for metric, values in columns.items())]
        return [["checkpoint", "step", *metrics], *rows, top]


def _only(parts: dict[str, dict], sets: list[tuple[str, str]]) -> dict[str, dict]:
    """Of protocol -> target -> ..., the sets (protocol, target) alone."""
    kept: dict[str, dict] = {}
    for name, target in sets:
        if target in parts.get(name, {}):
            kept.setdefault(name, {})[target] = parts[name][target]
    return kept
