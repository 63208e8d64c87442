"""Saving checkpoints in a thread, while training goes on."""

import os
import shutil
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from train.checkpoint import SHARDS, Checkpoint, Shards, prune, save
from utils.errors import describe_error


class Saver:
    """Saves checkpoints in a thread. Training waits only for the copy to host memory.

    If a checkpoint cannot be written (disk full, no permission), `log_line` gets a message and training continues.
    Only the next save and the end of the run wait for a checkpoint that is still being written.

    unsaved: the step of the last checkpoint if it could not be written, otherwise None. protected: steps whose
    checkpoints are never removed; change it only after `finish`.
    """

    def __init__(self, folder: str | os.PathLike, keep: int, log_line: Callable[[str], None]) -> None:
        self._folder, self._keep, self._log_line = folder, keep, log_line
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future | None = None
        self.unsaved: int | None = None
        self.protected: set[int] = set()

    def save(self, step: int, checkpoint: Checkpoint, shards: Shards | None = None) -> None:
        """Copy the checkpoint to host memory. The thread then writes it and removes older ones (see `prune`)."""
        self.finish()
        self._writing = self._thread.submit(self._write, step, _copied(checkpoint), shards)

    def fail(self, step: int, error: OSError) -> None:
        """Take note that the shards of a checkpoint could not be written."""
        self.finish()
        self._log_line(self._describe_failure(step, error))

    def poll(self) -> None:
        """Log the outcome of the last save, if it has ended."""
        if self._writing is not None and self._writing.done():
            self.finish()

    def finish(self) -> None:
        """Wait until everything is written."""
        writing, self._writing = self._writing, None
        if writing is not None:
            for line in writing.result():
                self._log_line(line)

    def _write(self, step: int, checkpoint: Checkpoint, shards: Shards | None) -> list[str]:
        """Write and prune in the thread; returns lines for the log.

        The thread does not log them itself: a worker that is forked meanwhile would inherit the locks of the log.
        """
        try:
            lines = [f"saved {save(self._folder, step, checkpoint, shards)}"]
            self.unsaved = None
        except OSError as error:
            if shards is not None:  # they are large, and would stay
                shutil.rmtree(shards.folder, ignore_errors=True)
                shutil.rmtree(Path(self._folder, f"{step}{SHARDS}"), ignore_errors=True)
            return [self._describe_failure(step, error)]
        try:
            prune(self._folder, self._keep, self.protected)
        except OSError as error:
            lines.append(f"NOT REMOVED: checkpoints older than the {self._keep} newest ({describe_error(error)})")
        return lines

    def _describe_failure(self, step: int, error: OSError) -> str:
        self.unsaved = step
        return (
            f"NOT SAVED: the checkpoint of step {step} ({describe_error(error)}); training continues and tries again "
            "at the next checkpoint, and older ones are intact"
        )


def _copied(value: Any) -> Any:
    """Copy dicts, lists and tuples, with all tensors in host memory, where later steps do not change them."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        items = [_copied(item) for item in value]
        return type(value)(*items) if hasattr(value, "_fields") else type(value)(items)
    return value
