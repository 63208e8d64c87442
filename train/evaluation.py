"""Evaluation during training: on every set that is due at an epoch, with the metrics in the log."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from data import WHERE_TO_GET
from eval.protocol import Metrics
from eval.protocols import due, evaluate, flatten
from eval.report import format_results
from eval.sets import EvaluationSet
from train.run_log import RunLog
from utils.distributed import broadcast_buffers, report_activity
from utils.errors import InputError


class PeriodicEvaluation:
    """Scores `student` on those of `sets` that are due. Call it on every rank.

    interruptible: makes the context of the embedding and scoring, which a signal may end with KeyboardInterrupt.
    """

    def __init__(
        self,
        sets: Sequence[EvaluationSet],
        student: nn.Module,
        log: RunLog,
        device: torch.device,
        dtype: torch.dtype,
        interruptible: Callable[[], AbstractContextManager],
    ) -> None:
        self._sets, self._student, self._log, self._device, self._dtype = sets, student, log, device, dtype
        self._interruptible = interruptible
        self._absent: set[str] = set()  # sets that the log has named as absent
        self._failed: dict[str, int] = {}  # why a set could not be scored -> the last step at which it failed

    def __call__(self, step: int, epoch: int) -> Metrics:
        """Score the student of this step on the sets that are due after `epoch` epochs, and log the metrics.

        Returns the metrics by result name; empty on ranks other than 0.
        """
        sets = due(self._sets, epoch)
        if not sets:
            return {}
        report_activity(step, "evaluation")
        broadcast_buffers(self._student)
        with self._interruptible():
            results = evaluate(self._student, sets, self._device, self._dtype)
        for absent in results.absent:
            if absent not in self._absent:
                self._log.line(f"not evaluated, absent: {absent}; {WHERE_TO_GET}")
        self._absent.update(results.absent)
        self._failed.update(dict.fromkeys(results.failed, step))
        if results.metrics or results.failed:
            self._log.line(f"evaluation at step {step}, epoch {epoch}\n{format_results(results._replace(absent=[]))}")
        metrics = flatten(results.metrics)
        self._log.metrics(step, "evaluation", metrics)
        return metrics

    def require_success(self) -> None:
        """Raise InputError if a set could not be scored at some step."""
        if self._failed:
            failed = "; ".join(f"{reason} (step {step})" for reason, step in self._failed.items())
            raise InputError(f"trained to the end, but not all evaluations succeeded: {failed}")
