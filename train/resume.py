"""What a run puts into its checkpoints, and how it goes on from one."""

import torch
from easydict import EasyDict

from train import checkpoint
from train.bad_steps import BadSteps
from train.checkpoint import Checkpoint, CheckpointError
from train.tasks import Task
from utils.distributed import on_all_ranks, on_rank_0


class RunState:
    """All that changes in a run but its step: student, head, optimiser, loss scale, count of bad steps."""

    def __init__(
        self,
        cfg: EasyDict,
        total_batch: int,
        task: Task,
        optimizer: torch.optim.Optimizer,
        scaler: torch.amp.GradScaler,
        bad_steps: BadSteps,
    ) -> None:
        self._cfg, self._task, self._optimizer, self._scaler = cfg, task, optimizer, scaler
        self._bad_steps = bad_steps
        # What a run can only be resumed with: the task, the shapes of its weights, and what the order depends on.
        keys = ("network", "embedding_size", "width", "SE", "loss", "num_classes", "num_image", "seed")
        self._identity = {"task": type(task).__name__, "total_batch": total_batch, **{key: cfg[key] for key in keys}}

    def checkpoint(self) -> Checkpoint:
        """The state as it is; its tensors change with the next step."""
        state = {
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "bad_steps": self._bad_steps.state(),
            "run": self._identity,
        }
        return Checkpoint(self._task.student.state_dict(), self._task.head.header(), state)

    def resume(self) -> tuple[int, list[str]]:
        """Take the state of the checkpoint that the config asks for. Its step, 0 for none, and what to say of those
        that were passed over. Every rank must call it. Raises CheckpointError."""
        folder = self._cfg.output
        on_rank_0(lambda: checkpoint.remove_unfinished(folder))
        step, problems = on_rank_0(lambda: checkpoint.step_to_resume(self._cfg))
        then = f"going on from step {step}" if step else "starting anew"
        if step:
            self._load(on_all_ranks(lambda: checkpoint.load(folder, step)), f"{folder}: step {step}")
            on_rank_0(lambda: checkpoint.remove_after(folder, step))
        return step, [f"NOT RESUMED: {problem}; {then}" for problem in problems]

    def _load(self, saved: Checkpoint, source: str) -> None:
        before, now = saved.state["run"], self._identity
        if before != now:
            changed = [f"{key} {before.get(key)!r} (now {now[key]!r})" for key in now if before.get(key) != now[key]]
            raise CheckpointError(
                f"{source} was trained with {', '.join(changed)}; resume with the same, or start anew in another "
                "output from its weights, by init_from"
            )
        self._task.student.load_state_dict(saved.backbone)
        self._task.head.load_header(saved.header)
        self._optimizer.load_state_dict(saved.state["optimizer"])
        for group in self._optimizer.param_groups:
            group["fused"] = True  # whatever the run before was made with
        self._scaler.load_state_dict(saved.state["scaler"])
        if "bad_steps" in saved.state:  # runs of before they were counted have none
            self._bad_steps.load(saved.state["bad_steps"])
