"""What a run stores in its checkpoints, and how it resumes from one."""

import ast
import os
from pathlib import Path
from typing import Any

from easydict import EasyDict

from config.paths import input_path
from config.rules import MAY_CHANGE, RULES
from data.dataset import FaceDataset
from train import checkpoint
from train.checkpoint import Checkpoint, CheckpointError, Shards
from train.step import TrainingStep
from train.tasks import Task
from utils.distributed import on_all_ranks, on_rank_0

HEADER_LIMIT = 2**30  # bytes of the centers up to which rank 0 gathers them, to write header.pth beside the shards


class RunState:
    """Everything that changes during a run, except its step: student, head, optimiser, loss scale, bad steps.

    A checkpoint also stores the settings of the run: its identity, which a resumed run must have too (the task, the
    images, the teacher and all keys that are not in MAY_CHANGE), and the other keys, whose changes are logged.
    """

    def __init__(
        self, cfg: EasyDict, total_batch: int, dataset: FaceDataset, task: Task, take_step: TrainingStep
    ) -> None:
        self._folder, self._newest, self._global_step = cfg.output, cfg.resume == "auto", cfg.global_step
        self._task, self._take_step = task, take_step
        fixed = [key for key in RULES if key not in MAY_CHANGE and not key.startswith(task.ignored)]
        self._identity = {
            "task": type(task).__name__,
            "total_batch": total_batch,
            "training set": "sha256 " + on_rank_0(lambda: dataset.fingerprint)[:16],
            "teacher": task.teacher,
            **{key: cfg[key] for key in fixed},
            "m": task.head.softmax.margin.m,  # None in the config is the default of the margin
        }
        self._others = {key: cfg[key] for key in cfg if key not in (*fixed, "output", "resume", "global_step")}

    def checkpoint(self) -> Checkpoint:
        """The current state, without shards. Every rank must call it. Its tensors change with the next step."""
        head = self._task.head
        state = {**self._take_step.state(), "run": self._identity, "may_change": self._others}
        header = head.header()
        if head.owned is not None:
            state["margin"] = header
            state["optimizer"]["state"].pop(self._take_step.position(head.centers), None)
            if head.classes * head.own_centers()[:1].nbytes > HEADER_LIMIT:
                header = None
            elif (centers := head.full_centers()) is not None:  # on rank 0
                header = {"kernel": centers.t(), **header}
        return Checkpoint(self._task.student.state_dict(), header, state)

    def write_shards(self, step: int) -> Shards | None:
        """Write the centers of all ranks, and their momentum; None if each rank has all centers. Raises OSError."""
        head = self._task.head
        if head.owned is None:
            return None
        from train.shards import write_shards  # here, because importing DCP takes a second

        slices = {"centers": head.own_centers(), **self._take_step.momentum(head.centers)}
        return write_shards(self._folder, step, slices, head.classes)

    def resume(self) -> tuple[int, list[str]]:
        """Load the checkpoint that the config asks for. Every rank must call it. Raises CheckpointError.

        Returns its step, 0 for a new run, and lines for the log about newer checkpoints that are not intact and about
        settings that have changed.
        """
        folder = self._folder
        on_rank_0(lambda: checkpoint.remove_unfinished(folder))
        step, problems = on_rank_0(lambda: checkpoint.step_to_resume(folder, self._newest, self._global_step))
        then = f"resuming from step {step}" if step else "starting from step 0"
        notes = [f"NOT RESUMED: {problem}; {then}" for problem in problems]
        if step:
            notes += self._load(on_all_ranks(lambda: checkpoint.load(folder, step)), step)
            on_rank_0(lambda: checkpoint.remove_after(folder, step))
        return step, notes

    def _load(self, saved: Checkpoint, step: int) -> list[str]:
        source = f"{self._folder}: step {step}"
        before = saved.state["run"]
        if not before.keys() >= self._identity.keys():
            before = {**on_rank_0(self._settings_in_config_file), **before}
        if changed := _differences(before, self._identity):
            raise CheckpointError(
                f"{source} was trained with {', '.join(changed)}; resume with the same settings, or start a "
                "new run from its weights (init_from) in another output"
            )
        self._task.student.load_state_dict(saved.backbone)
        self._load_centers(saved, step)
        self._take_step.load(saved.state)
        notes = [f"changed: {change}" for change in _differences(saved.state.get("may_change", {}), self._others)]
        if unknown := [key for key in self._identity if key not in before]:
            stored = f"written by an older version that did not store {', '.join(unknown)}"
            notes.append(f"WARNING: {source}: {stored}; these were not compared")
        return notes

    def _load_centers(self, saved: Checkpoint, step: int) -> None:
        """Load centers and norm statistics, and add the momentum of the centers to the state of the optimiser."""
        head, position = self._task.head, self._take_step.position(self._task.head.centers)
        optimizer = saved.state["optimizer"]["state"]
        if not checkpoint.has_shards(self._folder, step):
            head.load_header(saved.header)
            if head.owned is not None and position in optimizer:
                momentum = optimizer[position]["momentum_buffer"]
                optimizer[position]["momentum_buffer"] = momentum[head.owned.start : head.owned.stop].clone()
            return
        if not self._newest:  # the newest intact checkpoint was just compared with its checksums
            on_rank_0(lambda: checkpoint.require_intact(self._folder, step))
        from train.shards import read_shards

        tensors = read_shards(self._folder, step, head.owned)
        head.load_header(saved.state["margin"])
        head.own_centers().copy_(tensors["centers"])
        if "momentum" in tensors:
            optimizer[position] = {"momentum_buffer": tensors["momentum"]}

    def _settings_in_config_file(self) -> dict[str, Any]:
        """The keys in the run's config.py, for checkpoints of older versions, which state few. Executes nothing."""
        try:
            tree = ast.parse(Path(self._folder, "config.py").read_text(encoding="utf-8"))
            (preset,) = (node.value for node in tree.body if isinstance(node, ast.Assign))
            settings = {key: value for key, value in ast.literal_eval(preset).items() if key not in MAY_CHANGE}
        except (OSError, ValueError, SyntaxError, TypeError, AttributeError, RecursionError):
            return {}
        return {**settings, "m": self._task.head.softmax.margin.m_of(EasyDict({"m": None, **settings}))}


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """The values that both have, and in which they differ, in words."""
    return [f"{key} {before[key]!r} (now {now[key]!r})" for key in now if key in before and before[key] != now[key]]


def notes_on_moved_run(config: str | os.PathLike, output: str | os.PathLike) -> tuple[str, ...]:
    """A warning for the log if the config file is in a folder with checkpoints that is not `output`."""
    folder = input_path(config).resolve().parent
    steps = checkpoint.complete_steps(folder)
    if not steps or folder == Path(output).resolve():
        return ()
    return (
        f"WARNING: {config} is in a folder with checkpoints (of steps {', '.join(map(str, steps))}), but output is "
        f"{output}; if you moved the folder, set output={folder}",
    )
