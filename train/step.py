"""One optimiser step: forward, backward, clipping, SGD. It does not know the method: the task returns the loss."""

from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any, NamedTuple

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.profiler import record_function

from data.loader import Batch
from train.bad_steps import BadSteps, skippable_sgd
from train.schedules import build_learning_rate
from train.tasks import Task
from utils.distributed import rank, report_activity, sum_over_ranks, world_size
from utils.precision import compute_type


class StepResult(NamedTuple):
    """lr: the learning rate; stats: statistics of this rank's last forward pass, and grad_norm, each a tensor []."""

    lr: float
    stats: dict[str, Tensor]


class TrainingStep:
    """Takes optimiser steps: step(batches, done) takes the next `accumulate_steps` batches, after `done` earlier steps.

    The learning rate depends on steps_per_epoch and total_batch, the number of images per step over all ranks.
    """

    def __init__(self, cfg: EasyDict, task: Task, steps_per_epoch: int, total_batch: int, device: torch.device) -> None:
        self.task, self.steps_per_epoch, self.device = task, steps_per_epoch, device
        self.accumulate_steps, self.clip_grad_norm, self.seed = cfg.accumulate_steps, cfg.clip_grad_norm, cfg.seed
        self.dtype = compute_type(cfg.dtype, device)
        self.learning_rate = build_learning_rate(cfg, total_batch)
        self.parameters = [p for module in (task.student, task.head) for p in module.parameters() if p.requires_grad]
        self.optimizer = skippable_sgd(self.parameters, cfg.lr, cfg.momentum, cfg.weight_decay)
        # The gradient of sharded centers is different on each rank; all others are the same on all ranks.
        head = task.head
        self._own = [head.centers] if head.owned is not None and isinstance(head.centers, nn.Parameter) else []
        self._shared = [p for p in self.parameters if not any(p is own for own in self._own)]
        # A margin softmax of scale 64 has large gradients: torch's default scale, 65536, overflows for many steps.
        scaler_type = torch.amp.GradScaler
        if self._own and world_size() > 1:  # imported here, because that takes half a second
            from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler as scaler_type
        self.scaler = scaler_type(device.type, init_scale=1024.0, enabled=self.dtype == torch.float16)
        self.bad_steps = BadSteps(self.optimizer, task.student, task.head, cfg.max_bad_steps, device)

    def __call__(self, batches: Iterator[Batch], done: int) -> StepResult:
        epoch = done / self.steps_per_epoch
        lr = self.learning_rate(epoch)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.task.head.set_epoch(epoch)
        self.bad_steps.begin()
        for number in range(self.accumulate_steps):
            is_last = number == self.accumulate_steps - 1
            report_activity(done + 1, "waiting for input")
            with record_function("input"):
                batch = next(batches)
            # Random numbers in a network (dropout) depend only on seed, step, rank and pass, so a resumed run draws the
            # same ones. Set here, because a loader draws one when it starts, in the first step of a run or an epoch.
            torch.manual_seed(hash((self.seed, done, rank(), number)) & (2**63 - 1))
            report_activity(done + 1, "forward and backward", has_collectives=True)
            with nullcontext() if is_last else self.task.no_sync():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    output = self.task.forward(batch)
                with record_function("backward"):
                    factor = self.bad_steps.one_or_nan(output) / self.accumulate_steps
                    self.scaler.scale(output.loss * factor).backward()
        with record_function("optimiser"):
            self.scaler.unscale_(self.optimizer)
            grad_norm = self._clip_gradients()
            self.bad_steps.take_step(done + 1, output.stats, grad_norm)
            self.scaler.update()
            self.optimizer.zero_grad(set_to_none=True)
        return StepResult(lr, {**output.stats, "grad_norm": grad_norm})

    def _clip_gradients(self) -> Tensor:
        """Scale the gradients down to the largest norm that is allowed. Returns the norm of all ranks', a tensor []."""
        norm = nn.utils.get_total_norm([p.grad for p in self._shared if p.grad is not None])
        if self._own:
            squares = nn.utils.get_total_norm([p.grad for p in self._own]).square()
            sum_over_ranks(squares)
            norm = (norm.square() + squares).sqrt()
        nn.utils.clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        return norm

    def position(self, parameter: Tensor) -> int | None:
        """The number of a parameter in the state of the optimiser; None if it is not trained."""
        return next((number for number, p in enumerate(self.parameters) if p is parameter), None)

    def momentum(self, parameter: Tensor) -> dict[str, Tensor]:
        """{"momentum": the momentum of a parameter}; {} if it has none."""
        state = self.optimizer.state.get(parameter, {})
        return {"momentum": state["momentum_buffer"]} if state else {}

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint stores."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict(),
            "bad_steps": self.bad_steps.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Restore what `state` returned."""
        self.optimizer.load_state_dict(state["optimizer"])
        for group in self.optimizer.param_groups:
            group["fused"] = True  # also if the checkpoint was written without fused SGD
        if state["scaler"]:  # empty if the checkpoint was written in another data type than float16
            self.scaler.load_state_dict(state["scaler"])
        if "bad_steps" in state:  # checkpoints of older versions have no such entry
            self.bad_steps.load(state["bad_steps"])
