"""What a run stores in its checkpoints, and how it resumes from one."""

from easydict import EasyDict

from train import checkpoint
from train.checkpoint import Checkpoint, CheckpointError
from train.step import TrainingStep
from train.tasks import Task
from utils.distributed import on_all_ranks, on_rank_0


class RunState:
    """Everything that changes during a run, except its step: student, head, optimiser, loss scale, bad steps."""

    def __init__(self, cfg: EasyDict, total_batch: int, task: Task, take_step: TrainingStep) -> None:
        self._folder, self._newest, self._global_step = cfg.output, cfg.resume == "auto", cfg.global_step
        self._task, self._take_step = task, take_step
        # A run can only be resumed with the same task, the same shapes of weights, and the same order of images.
        keys = ("network", "embedding_size", "width", "SE", "loss", "num_classes", "num_image", "seed")
        self._identity = {"task": type(task).__name__, "total_batch": total_batch, **{key: cfg[key] for key in keys}}

    def checkpoint(self) -> Checkpoint:
        """The current state. Its tensors change with the next step."""
        state = {**self._take_step.state(), "run": self._identity}
        return Checkpoint(self._task.student.state_dict(), self._task.head.header(), state)

    def resume(self) -> tuple[int, list[str]]:
        """Load the checkpoint that the config asks for. Every rank must call it. Raises CheckpointError.

        Returns its step, 0 for a new run, and lines for the log about newer checkpoints that are not intact.
        """
        folder = self._folder
        on_rank_0(lambda: checkpoint.remove_unfinished(folder))
        step, problems = on_rank_0(lambda: checkpoint.step_to_resume(folder, self._newest, self._global_step))
        then = f"resuming from step {step}" if step else "starting from step 0"
        if step:
            self._load(on_all_ranks(lambda: checkpoint.load(folder, step)), f"{folder}: step {step}")
            on_rank_0(lambda: checkpoint.remove_after(folder, step))
        return step, [f"NOT RESUMED: {problem}; {then}" for problem in problems]

    def _load(self, saved: Checkpoint, source: str) -> None:
        before, now = saved.state["run"], self._identity
        if before != now:
            changed = [f"{key} {before.get(key)!r} (now {now[key]!r})" for key in now if before.get(key) != now[key]]
            raise CheckpointError(
                f"{source} was trained with {', '.join(changed)}; resume with the same settings, or start a "
                "new run from its weights (init_from) in another output"
            )
        self._task.student.load_state_dict(saved.backbone)
        self._task.head.load_header(saved.header)
        self._take_step.load(saved.state)
