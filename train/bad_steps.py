"""Skips, undoes and counts bad steps, without waiting for the device.

A step is bad if the loss, a statistic or the gradient of any rank is not finite. A bad step changes nothing: weights,
momentum, BatchNorm buffers, class centers and norm statistics are the same as before it.
"""

import math
from collections import deque
from typing import Any

import torch
from torch import Tensor, nn

from heads import HeadOutput
from heads.head import Head
from utils.distributed import mean_over_ranks
from utils.errors import InputError


class TrainingError(InputError):
    """Training cannot continue. The message states the step and the usual causes."""


def skippable_sgd(parameters: list[nn.Parameter], lr: float, momentum: float, weight_decay: float) -> torch.optim.SGD:
    """Build torch's fused SGD, with momentum buffers that exist before the first step, which may be skipped."""
    optimizer = torch.optim.SGD(parameters, lr=lr, momentum=momentum, weight_decay=weight_decay, fused=True)
    if momentum:  # torch would create the buffer in the first step, and leave it undefined if that step is skipped
        for parameter in parameters:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


class Snapshot:
    """A copy of tensors. Copying and restoring take few operations and do not wait for the device."""

    def __init__(self, tensors: list[Tensor]) -> None:
        dtypes = {tensor.dtype for tensor in tensors}
        self._groups = [[tensor for tensor in tensors if tensor.dtype == dtype] for dtype in dtypes]
        self._copies = [_flattened(group) for group in self._groups]

    def restore(self, undo: Tensor) -> None:
        """Restore the tensors if `undo`, a bool [] on the device, is true."""
        for tensors, copy in zip(self._groups, self._copies, strict=True):
            parts = torch.where(undo, copy, _flattened(tensors)).split([tensor.numel() for tensor in tensors])
            # A private function of torch, because no public one copies many tensors in one operation.
            torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def _flattened(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class BadSteps:
    """Takes optimiser steps, skips and undoes the bad ones, and counts them.

    In each step, call `begin` before the first forward pass, multiply each loss by `one_or_nan`, and call `take_step`
    after the last backward pass. On a GPU the number of bad steps in a row is known some steps later, because nothing
    waits for the device.

    optimizer: made by `skippable_sgd`; student, head: the modules that forward passes change; max_in_a_row: how
    many bad steps in a row are allowed.
    """

    def __init__(
        self, optimizer: torch.optim.SGD, student: nn.Module, head: Head, max_in_a_row: int, device: torch.device
    ) -> None:
        self._optimizer, self._head, self._max_in_a_row, self._device = optimizer, head, max_in_a_row, device
        self._buffers = [*student.buffers(), *head.softmax.buffers()]
        self._snapshot: Snapshot | None = None
        self._counts = torch.zeros(2, dtype=torch.int64, device=device)  # bad steps in a row, and in total
        self._keep_total = torch.tensor([0, 1], device=device)  # a factor that resets the first count only
        self._names: list[str] = []  # names of the statistics
        self._last_good: Tensor | None = None  # number and statistics of the last good step
        self._pending: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()  # counts that are copied to the host
        self._in_a_row = 0  # as far as the host knows

    @property
    def total(self) -> Tensor:
        """The number of bad steps so far, int64 []."""
        return self._counts[1]

    def begin(self) -> None:
        """Save everything that forward passes change, so that `take_step` can restore it."""
        self._snapshot = Snapshot(self._buffers)
        self._head.begin_step()

    def one_or_nan(self, output: HeadOutput) -> Tensor:
        """Return a factor for the loss, float [] on the device: 1, or NaN if the loss or a statistic is not finite.

        NaN makes all gradients of this rank NaN, and averaging then makes the gradients of all ranks NaN.
        """
        finite = torch.stack([output.loss.detach(), *output.stats.values()]).isfinite().all()
        return torch.where(finite, 1.0, torch.nan)

    def take_step(self, number: int, stats: dict[str, Tensor], grad_norm: Tensor) -> None:
        """Take optimiser step `number`. If `grad_norm` [] is not finite, undo the step and count it as bad instead."""
        bad = ~grad_norm.isfinite()
        self._optimizer.found_inf = bad.float()  # at 1, fused optimisers skip the step, as in loss scaling
        self._optimizer.step()
        self._snapshot.restore(bad)
        self._head.end_step(bad)
        self._count(bad, number, {**stats, "grad_norm": grad_norm})

    def _count(self, bad: Tensor, number: int, stats: dict[str, Tensor]) -> None:
        self._counts = torch.where(bad, self._counts + 1, self._counts * self._keep_total)
        self._names = list(stats)
        now = torch.stack([torch.full_like(bad, number, dtype=torch.float32), *(v.float() for v in stats.values())])
        before = torch.full_like(now, torch.nan) if self._last_good is None else self._last_good
        self._last_good = torch.where(bad, before, now)
        event = torch.cuda.Event() if self._device.type == "cuda" else None
        self._pending.append((self._counts[0].to("cpu", non_blocking=True), event))
        if event is not None:
            event.record()

    def too_many(self, wait: bool = False) -> bool:
        """Whether too many steps in a row were bad. Without `wait`, only counts that have reached the host are used."""
        while self._pending and (wait or self._pending[0][1] is None or self._pending[0][1].query()):
            count, event = self._pending.popleft()
            if wait and event is not None:
                event.synchronize()
            self._in_a_row = int(count)
        return self._in_a_row > self._max_in_a_row

    def error(self, step: int) -> TrainingError:
        """Build the error to raise at `step` after too many bad steps. Every rank must call it."""
        last = mean_over_ranks(dict(zip(["step", *self._names], self._last_good, strict=True)))
        good = last.pop("step")
        shown = " ".join(f"{name} {value:.4g}" for name, value in last.items())
        before = "no step before them was good" if math.isnan(good) else f"the last good one, {good:.0f}, had {shown}"
        return TrainingError(
            f"step {step}: the loss or gradient of the last {int(self._counts[0])} steps was not finite, more than "
            f"max_bad_steps = {self._max_in_a_row} in a row; they were skipped, and {before}. Usual causes: a learning "
            "rate too high for the batch size, float16 instead of bfloat16, a broken teacher or broken images "
            "(tools/check_data.py). See docs/troubleshooting.md, NaN loss"
        )

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {"in_a_row": self._counts[0], "total": self._counts[1], "names": self._names, "last": self._last_good}

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self._counts = torch.stack([state["in_a_row"], state["total"]]).to(self._device)
        self._names = state["names"]
        self._last_good = None if state["last"] is None else state["last"].to(self._device)
