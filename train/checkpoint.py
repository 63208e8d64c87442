"""Checkpoints of a run, four files per step.

<step>backbone.pth holds the student, <step>header.pth the class centers, <step>state.pth everything else that resuming
needs, and <step>sha256.txt the checksums of the others, in the format of `sha256sum -c`. A run whose centers are split
over the ranks also writes the folder <step>centers.dcp (see shards.py), and <step>header.pth only if it is small.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from utils.errors import InputError
from utils.files import atomic_write, sha256, write_text
from utils.weights import WeightsError, read_weights_file

PARTS = ("backbone.pth", "header.pth", "state.pth")
SUMS = "sha256.txt"
SHARDS = "centers.dcp"


class CheckpointError(InputError):
    """A checkpoint is missing, broken or of another run. The message names it and says what to do."""


class Shards(NamedTuple):
    """Written shards that are not part of a checkpoint yet. sums: the checksum of each file, by its name."""

    folder: Path
    sums: dict[str, str]


class Checkpoint(NamedTuple):
    """The content of the three files.

    backbone: the state dict of the bare student; header: `kernel` [D, C] (the centers, transposed) and the margin's
    statistics, or None if the centers are only in shards; state: optimiser, loss scale, bad steps and the settings that
    must not change.
    """

    backbone: dict[str, Tensor]
    header: dict[str, Tensor] | None
    state: dict[str, Any]


def save(folder: str | os.PathLike, step: int, checkpoint: Checkpoint, shards: Shards | None = None) -> Path:
    """Write the files atomically, the state and the checksums last. Returns the path of the backbone file."""
    remove(folder, step)  # files of an older checkpoint of this step must not mix with the new ones
    sums = ""
    if shards is not None:
        os.rename(shards.folder, Path(folder, f"{step}{SHARDS}"))
        sums = "".join(f"{digest}  {step}{SHARDS}/{name}\n" for name, digest in shards.sums.items())
    for part, content in zip(PARTS, checkpoint, strict=True):
        if content is not None:
            sums += _write(folder, f"{step}{part}", content)
    write_text(Path(folder, f"{step}{SUMS}"), sums)
    return Path(folder, f"{step}{PARTS[0]}")


def add_header(folder: str | os.PathLike, step: int, header: dict[str, Tensor]) -> Path:
    """Add a header to a checkpoint that has the centers in shards, or replace it. Returns its path."""
    name, sums = f"{step}{PARTS[1]}", Path(folder, f"{step}{SUMS}")
    lines = sums.read_text(encoding="utf-8").splitlines(keepends=True) if sums.exists() else []
    sums.unlink(missing_ok=True)  # a checkpoint without checksums is accepted, one with another header is not
    line = _write(folder, name, header)
    if lines:
        write_text(sums, "".join(old for old in lines if not old.endswith(f"  {name}\n")) + line)
    return Path(folder, name)


def _write(folder: str | os.PathLike, name: str, content: dict[str, Any]) -> str:
    """Write a file atomically. Returns its line for the file of checksums."""
    with atomic_write(Path(folder, name)) as file:
        written = _HashedFile(file)
        torch.save(content, written)
        return f"{written.finish()}  {name}\n"


class _HashedFile:
    """A file for torch.save: it passes everything on to `file`, and hashes it. Nothing is copied.

    An OSError (disk full) is raised by `finish`, because torch.save would report it as an error of its file format.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._error: OSError | None = None

    def write(self, data: bytes | memoryview) -> int:
        try:
            if self._error is None:
                self._file.write(data)
        except OSError as error:
            self._error = error
        self._digest.update(data)
        return len(data)

    def flush(self) -> None:
        pass

    def finish(self) -> str:
        """The SHA-256 of everything that was written, in hexadecimal digits. Raises OSError."""
        if self._error is not None:
            raise self._error
        return self._digest.hexdigest()


def damage(folder: str | os.PathLike, step: int) -> str | None:
    """Describe what is wrong with the files of a complete checkpoint; None if they match their checksums.

    A checkpoint without checksums is accepted: it was interrupted before the last file, and each of the others was
    written atomically.
    """
    sums = Path(folder, f"{step}{SUMS}")
    if not sums.exists():
        return None
    names = [f"{step}{part}" for part in PARTS if Path(folder, f"{step}{part}").exists()]
    names += [f"{step}{SHARDS}/{path.name}" for path in sorted(Path(folder, f"{step}{SHARDS}").glob("*.safetensors"))]
    text = sums.read_text(encoding="utf-8", errors="replace")
    written = {line[66:]: line[:64] for line in text.splitlines()}
    wanted = "".join(rf"[0-9a-f]{{64}}  {step}[\w.]+(/[\w.-]+)?\n" for _ in written)
    if not re.fullmatch(wanted, text) or not written.keys() >= set(names):
        return f"{sums}: broken: must hold the checksums of {', '.join(names)}"
    for name, digest in written.items():
        if not Path(folder, name).exists():
            return f"{Path(folder, name)}: missing, but {sums.name} has its checksum"
        if sha256(Path(folder, name)) != digest:
            return f"{Path(folder, name)}: broken: cut short or changed since it was written, as {sums.name} says"
    return None


def require_intact(folder: str | os.PathLike, step: int) -> None:
    """Raise CheckpointError if a file of the checkpoint does not match its checksum."""
    if problem := damage(folder, step):
        raise CheckpointError(f"{problem}; resume from an older step")


def load(folder: str | os.PathLike, step: int) -> Checkpoint:
    """Read the checkpoint of `step` to the CPU. Raises CheckpointError, which lists the steps that exist."""
    steps = complete_steps(folder)
    if step not in steps:
        available = ", ".join(map(str, steps)) or "none"
        raise CheckpointError(f"{folder}: no complete checkpoint of step {step}; available steps: {available}")
    paths = [Path(folder, f"{step}{part}") for part in PARTS]
    return Checkpoint(*(_read(path) if path.exists() else None for path in paths))


def has_shards(folder: str | os.PathLike, step: int) -> bool:
    """Whether the centers of this step are in shards."""
    return Path(folder, f"{step}{SHARDS}").is_dir()


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_weights_file(path)
    except WeightsError as error:
        raise CheckpointError(f"{path}: broken or cut short; resume from an older step ({error})") from error


def complete_steps(folder: str | os.PathLike) -> list[int]:
    """The steps whose three files exist, ascending. Shards may take the place of the header."""
    return [step for step, parts in _files(folder).items() if not _missing(parts)]


def _missing(parts: set[str]) -> list[str]:
    """The files that a checkpoint lacks, of which `parts` exist."""
    return sorted(set(PARTS) - parts - ({PARTS[1]} if SHARDS in parts else set()))


def _files(folder: str | os.PathLike) -> dict[int, set[str]]:
    """For each step, in ascending order: the files of its checkpoint that exist."""
    found: dict[int, set[str]] = {}
    for name in os.listdir(folder) if os.path.isdir(folder) else []:
        match = re.fullmatch(r"(\d+)(\w+\.\w+)", name)
        if match and match[2] in (*PARTS, SUMS, SHARDS):
            found.setdefault(int(match[1]), set()).add(match[2])
    return dict(sorted(found.items()))


def prune(folder: str | os.PathLike, keep: int, protected: Collection[int] = ()) -> None:
    """Remove checkpoints older than the `keep` newest intact ones, except those of `protected` steps; 0 keeps all."""
    intact, steps = 0, complete_steps(folder) if keep else []
    for step, parts in _files(folder).items():
        if steps and step < steps[-1] and SHARDS in parts and _missing(parts):
            remove(folder, step)  # an earlier removal was interrupted
    for step in reversed(steps):
        if intact == keep:
            if step not in protected:
                remove(folder, step)
        elif damage(folder, step) is None:
            intact += 1


def remove_after(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints after `step`: a run that resumes from `step` replaces them."""
    for later in _files(folder):
        if later > step:
            remove(folder, later)


def remove(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoint of `step`, if it exists: the state first, so that an interruption leaves it incomplete."""
    for part in (*reversed(PARTS), SUMS):
        Path(folder, f"{step}{part}").unlink(missing_ok=True)
    if has_shards(folder, step):
        shutil.rmtree(Path(folder, f"{step}{SHARDS}"))


def remove_unfinished(folder: str | os.PathLike) -> None:
    """Delete temporary files that interrupted writes left behind."""
    for path in Path(folder).glob(".*.part"):
        if re.fullmatch(r"\..+\.\d+\.part", path.name):
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


def step_to_resume(folder: str | os.PathLike, newest: bool, global_step: int) -> tuple[int, list[str]]:
    """Choose the step to resume from, 0 for a new run. Also return what is wrong with newer checkpoints.

    newest: choose the newest intact checkpoint if there is one (resume=auto), instead of `global_step`; a `global_step`
    of 0 starts a new run. Raises CheckpointError if all checkpoints are broken, or if a new run would mix with an
    old one.
    """
    steps = complete_steps(folder)
    if newest:
        problems = []
        for step, parts in reversed(_files(folder).items()):
            if missing := _missing(parts):
                problem = f"{folder}: step {step} lacks {', '.join(missing)}: writing it was interrupted"
            else:
                problem = damage(folder, step)
            if problem is None:
                return step, problems
            problems.append(problem)
        if steps:
            raise CheckpointError(f"no checkpoint is intact: {'; '.join(problems)}; start a new run in another output")
        return 0, problems
    if global_step:
        return global_step, []
    if steps:
        raise CheckpointError(
            f"{folder}: holds a run with checkpoints of steps {', '.join(map(str, steps))}; resume it with resume=auto "
            "or global_step=N, or name another output"
        )
    return 0, []
