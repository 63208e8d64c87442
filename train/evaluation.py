"""Evaluation during training: runs the protocols that are due after an epoch, and logs their metrics."""

import torch
from easydict import EasyDict
from torch import nn

from eval.protocols import due, evaluate, flat
from eval.report import format_results
from train.run_log import RunLog
from utils.distributed import broadcast_buffers, report_activity
from utils.errors import InputError


class PeriodicEvaluation:
    """Scores `student` on the sets that the config names. Every rank must call it."""

    def __init__(
        self, cfg: EasyDict, student: nn.Module, log: RunLog, device: torch.device, dtype: torch.dtype
    ) -> None:
        self._cfg, self._student, self._log, self._device, self._dtype = cfg, student, log, device, dtype
        self._absent: set[str] = set()  # absent sets that have been logged
        self._failed: dict[str, int] = {}  # reason of a failure -> the last step at which it occurred

    def __call__(self, step: int, epoch: int) -> None:
        """Run every protocol that is due after `epoch` epochs, and log the metrics of `step`."""
        names = due(self._cfg, epoch)
        if not names:
            return
        report_activity(step, "evaluation")
        broadcast_buffers(self._student)
        results = evaluate(self._student, self._cfg, names, self._device, self._dtype)
        for place in results.absent:
            if place not in self._absent:
                self._log.line(f"not evaluated, absent: {place}")
        self._absent.update(results.absent)
        self._failed.update(dict.fromkeys(results.failed, step))
        if results.metrics or results.failed:
            self._log.line(f"evaluation at step {step}, epoch {epoch}\n{format_results(results._replace(absent=[]))}")
        self._log.metrics(step, "evaluation", flat(results.metrics))

    def require_success(self) -> None:
        """Raise InputError if a set could not be scored at some step."""
        if self._failed:
            failed = "; ".join(f"{reason} (step {step})" for reason, step in self._failed.items())
            raise InputError(f"trained to the end, but not all evaluations succeeded: {failed}")
