"""Checkpoints of a run: <step>backbone.pth (the student), <step>header.pth (centers), <step>state.pth (all else)."""

import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from easydict import EasyDict
from torch import Tensor

from utils.errors import InputError
from utils.files import written_whole
from utils.weights import WeightsError, read_weights_file

PARTS = ("backbone.pth", "header.pth", "state.pth")


class CheckpointError(InputError):
    """A checkpoint that is not there, or that belongs to another run; the message names it and what there is."""


class Checkpoint(NamedTuple):
    """backbone: the student's plain state dict; header: `kernel` [D, C] and statistics; state: optimiser, ..."""

    backbone: dict[str, Tensor]
    header: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: str | os.PathLike, step: int, checkpoint: Checkpoint) -> Path:
    """Write the three files, each whole, the state last: it marks a complete checkpoint. Gives the student's path."""
    remove(folder, step)  # an older one of this step must not be completed by half of the new one
    for part, content in zip(PARTS, checkpoint, strict=True):
        with written_whole(Path(folder, f"{step}{part}")) as file:
            torch.save(content, file)
    return Path(folder, f"{step}{PARTS[0]}")


def load(folder: str | os.PathLike, step: int) -> Checkpoint:
    """Read the checkpoint of `step`, on the CPU. Raises CheckpointError with the steps that there are."""
    steps = complete_steps(folder)
    if step not in steps:
        there_are = f"there are {', '.join(map(str, steps))}" if steps else "there is none"
        raise CheckpointError(f"{folder}: no complete checkpoint of step {step}; {there_are}")
    return Checkpoint(*(_read(Path(folder, f"{step}{part}")) for part in PARTS))


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_weights_file(path)
    except WeightsError as error:
        raise CheckpointError(f"{path}: broken or cut short; resume an older step ({error})") from error


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """The steps whose three files are there, ascending."""
    names = set(os.listdir(folder)) if os.path.isdir(folder) else set()
    steps = [int(match[1]) for match in (re.fullmatch(r"(\d+)state\.pth", name) for name in names) if match]
    return sorted(step for step in steps if all(f"{step}{part}" in names for part in PARTS))


def step_in_name(name: str) -> int | None:
    """The step that a file name such as 15163backbone.pth begins with; None where it begins with none."""
    digits = re.match(r"\d+", name)
    return int(digits[0]) if digits else None


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Remove all but the `keep` newest complete checkpoints, the state first; 0 keeps all."""
    for step in complete_steps(folder)[:-keep] if keep else []:
        remove(folder, step)


def remove_after(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints later than `step`: a run that goes on from there gives them up, or resume would mix."""
    for later in complete_steps(folder):
        if later > step:
            remove(folder, later)


def remove(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoint of `step`, if there is one: the state first, so that what is left is never complete."""
    for part in reversed(PARTS):
        Path(folder, f"{step}{part}").unlink(missing_ok=True)


def step_to_resume(cfg: EasyDict) -> int:
    """The step that the config asks to resume; 0: none.

    Raises CheckpointError where global_step does not exist, or a new run would mix with the checkpoints of another.
    """
    steps = complete_steps(cfg.output)
    if cfg.resume == "auto":
        return steps[-1] if steps else 0
    if cfg.global_step:
        return cfg.global_step
    if steps:
        raise CheckpointError(
            f"{cfg.output}: holds a run with checkpoints of steps {', '.join(map(str, steps))}; go on from one with "
            "resume=auto or global_step=N, or name another output"
        )
    return 0
