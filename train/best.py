"""The best checkpoint of a run: it is never removed, and best.json names it."""

import json
from collections.abc import Sequence
from pathlib import Path

from eval.best import WHY_NO_VALUE, Criterion, build_criterion
from eval.protocol import Metrics
from eval.sets import EvaluationSet
from train.checkpoint import PARTS, complete_steps, damage, prune
from train.run_log import RunLog
from train.saver import Saver
from utils.files import write_text

FILE = "best.json"


def build_training_criterion(keep_best: str, sets: Sequence[EvaluationSet]) -> Criterion | None:
    """The criterion that the config key asks for; None if it is empty.

    Raises InputError if no set that is evaluated during training has the metric.
    """
    if not keep_best:
        return None
    evaluated = [evaluation_set for evaluation_set in sets if evaluation_set.epochs_between and evaluation_set.find()]
    return build_criterion("keep_best", keep_best, evaluated)


class BestCheckpoint:
    """Follows the evaluations of a run in `folder`, and protects the best checkpoint from being removed.

    keep: how many of the newest checkpoints are kept besides it; criterion: what decides, or None if nothing does.
    Only rank 0 calls the methods.
    """

    def __init__(self, folder: Path, keep: int, criterion: Criterion | None, saver: Saver, log: RunLog) -> None:
        self._folder, self._keep, self._criterion, self._saver, self._log = folder, keep, criterion, saver, log
        self._value: float | None = None

    def resume(self) -> None:
        """Find the best of the checkpoints that an earlier part of the run evaluated and that are still intact."""
        exist = complete_steps(self._folder)
        evaluated = {step: metrics for step, metrics in sorted(self._log.evaluated.items()) if step in exist}
        while self._criterion is not None and evaluated:
            values = [self._criterion.value(metrics) for metrics in evaluated.values()]
            position = self._criterion.best(values)
            if position is None:
                break
            step = list(evaluated)[position]
            if damage(self._folder, step) is None:
                self._choose(step, values[position])
                return
            del evaluated[step]
        (self._folder / FILE).unlink(missing_ok=True)  # what it names is removed, or was chosen by another metric

    def update(self, step: int, metrics: Metrics) -> None:
        """Take note of the metrics of a step, by result name. The best checkpoint so far replaces the one before."""
        if self._criterion is None:
            return
        value = self._criterion.value(metrics)
        is_due = any(name in metrics for name in self._criterion.metrics)  # else only other sets were evaluated
        if value is None and is_due:
            name = self._criterion.name
            self._log.line(f"WARNING: keep_best: {name} has no value at step {step}, {WHY_NO_VALUE}")
        if self._criterion.best([self._value, value]) != 1:
            return
        self._saver.finish()
        if step in complete_steps(self._folder):  # else the one before stays the best
            self._choose(step, value)
            self._log.try_writing(lambda: prune(self._folder, self._keep, self._saver.protected))

    def _choose(self, step: int, value: float) -> None:
        self._value = value
        self._saver.protected.add(step)
        shown = self._criterion.display.text(value)
        self._log.line(f"best checkpoint so far: step {step}, {self._criterion.meaning}: {shown}")
        content = {"step": step, "checkpoint": f"{step}{PARTS[0]}", "metric": self._criterion.name, "value": value}

        def write() -> None:
            write_text(self._folder / FILE, json.dumps(content, indent=1) + "\n")
            self._saver.protected = {step}  # only now, so that the checkpoint that the file names always exists

        self._log.try_writing(write)
