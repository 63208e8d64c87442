"""Checkpoints of a run: <step>backbone.pth (the student), <step>header.pth (centers), <step>state.pth (all else), and
<step>sha256.txt, the checksums of the three, which `sha256sum -c` reads too."""

import hashlib
import io
import os
import re
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from easydict import EasyDict
from torch import Tensor

from utils.errors import InputError
from utils.files import atomic_write, sha256, write_text
from utils.weights import WeightsError, read_weights_file

PARTS = ("backbone.pth", "header.pth", "state.pth")
SUMS = "sha256.txt"


class CheckpointError(InputError):
    """A checkpoint that is not there, or that belongs to another run; the message names it and what there is."""


class Checkpoint(NamedTuple):
    """backbone: the student's plain state dict; header: `kernel` [D, C] and statistics; state: optimiser, ..."""

    backbone: dict[str, Tensor]
    header: dict[str, Tensor]
    state: dict[str, Any]


def save(folder: str | os.PathLike, step: int, checkpoint: Checkpoint) -> Path:
    """Write the files, each whole, the state and the checksums last. Gives the student's path."""
    remove(folder, step)  # an older one of this step must not be completed by half of the new one
    sums = ""
    for part, content in zip(PARTS, checkpoint, strict=True):
        written = io.BytesIO()  # torch words an error of a file's own as one of its format
        torch.save(content, written)
        with atomic_write(Path(folder, f"{step}{part}")) as file:
            file.write(written.getbuffer())
        sums += f"{hashlib.sha256(written.getbuffer()).hexdigest()}  {step}{part}\n"
    write_text(Path(folder, f"{step}{SUMS}"), sums)
    return Path(folder, f"{step}{PARTS[0]}")


class Saver:
    """Saves checkpoints in a thread of its own: training waits for the copy to host memory.

    One that cannot be written (disk full, permission) is told by `say`, and training goes on. Only the next save, and
    the end, wait for one that is still being written. `unsaved`: the step that could not be written last, or None.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, say: Callable[[str], None]) -> None:
        self._folder, self._keep, self._say = folder, keep, say
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self.unsaved: int | None = None

    def save(self, step: int, checkpoint: Checkpoint) -> None:
        """Copy the checkpoint to host memory and have it written, and older ones removed (see `prune`)."""
        self.finish()
        self._writing = self._thread.submit(self._write, step, _copied(checkpoint))

    def poll(self) -> None:
        """Say what became of the last save, if that is known by now."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until all is written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            for line in writing.result():
                self._say(line)

    def _write(self, step: int, checkpoint: Checkpoint) -> list[str]:
        """In the thread, which itself says nothing: a worker forked meanwhile would inherit the locks of the screen."""
        try:
            said = [f"saved {save(self._folder, step, checkpoint)}"]
            self.unsaved = None
        except OSError as error:
            self.unsaved = step
            return [
                f"NOT SAVED: the checkpoint of step {step} ({error}); training goes on and tries again at the next "
                "one, older ones are whole; make room or rights for it"
            ]
        try:
            prune(self._folder, self._keep)
        except OSError as error:
            said.append(f"NOT REMOVED: checkpoints older than the {self._keep} newest ({error})")
        return said


def _copied(value: Any) -> Any:
    """Dicts, lists and tuples with all tensors copied to host memory, where later steps do not reach them."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value


def damage(folder: str | os.PathLike, step: int) -> str | None:
    """What is wrong with the files of a complete checkpoint; None where they are as they were written.

    One without checksums, as a kill before the last file leaves it, is taken as it is: each file is whole or not there.
    """
    sums = Path(folder, f"{step}{SUMS}")
    names = [f"{step}{part}" for part in PARTS]
    if not sums.exists():
        return None
    lines = "".join(f"([0-9a-f]{{64}})  {re.escape(name)}\n" for name in names)
    written = re.fullmatch(lines, sums.read_text(errors="replace"))
    if written is None:
        return f"{sums}: broken: must have the checksums of {', '.join(names)}"
    for name, checksum in zip(names, written.groups(), strict=True):
        if sha256(Path(folder, name)) != checksum:
            return f"{Path(folder, name)}: broken: cut short or changed since it was written, as {sums.name} says"
    return None


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
    return [step for step, parts in _files(folder).items() if parts >= set(PARTS)]


def _files(folder: str | os.PathLike) -> dict[int, set[str]]:
    """Step -> which of the files of its checkpoint are there; ascending."""
    found: dict[int, set[str]] = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        match = re.fullmatch(r"(\d+)(\w+\.\w+)", name)
        if match and match[2] in (*PARTS, SUMS):
            found.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(found.items()))


def prune(folder: str | os.PathLike, keep: int) -> None:
    """Remove what is older than the `keep` newest checkpoints that are whole on the disk; 0 keeps all."""
    whole = 0
    for step in reversed(complete_steps(folder) if keep else []):
        if whole == keep:
            remove(folder, step)
        elif damage(folder, step) is None:
            whole += 1


def remove_after(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints later than `step`: a run that goes on from there gives them up, or resume would mix."""
    for later in _files(folder):
        if later > step:
            remove(folder, later)


def remove(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoint of `step`, if there is one: the state first, so that what is left is not complete."""
    for part in (*reversed(PARTS), SUMS):
        Path(folder, f"{step}{part}").unlink(missing_ok=True)


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Remove what writes left that were killed."""
    for path in Path(folder).glob(".*.part"):
        if re.fullmatch(r"\..+\.\d+\.part", path.name):
            path.unlink(missing_ok=True)


def step_to_resume(cfg: EasyDict) -> tuple[int, list[str]]:
    """The step that the config asks to resume, 0 for none, and what is wrong with the newer ones that are passed over.

    Raises CheckpointError where there are checkpoints and all are broken, or a new run would mix with another's.
    """
    steps = complete_steps(cfg.output)
    if cfg.resume == "auto":
        problems = []
        for step, parts in reversed(_files(cfg.output).items()):
            if missing := set(PARTS) - parts:
                problem = f"{cfg.output}: step {step} lacks {', '.join(sorted(missing))}: its writing was cut off"
            else:
                problem = damage(cfg.output, step)
            if problem is None:
                return step, problems
            problems.append(problem)
        if steps:
            raise CheckpointError(f"no checkpoint is whole: {'; '.join(problems)}; start anew in another output")
        return 0, problems
    if cfg.global_step:
        return cfg.global_step, []
    if steps:
        raise CheckpointError(
            f"{cfg.output}: holds a run with checkpoints of steps {', '.join(map(str, steps))}; go on from one with "
            "resume=auto or global_step=N, or name another output"
        )
    return 0, []
