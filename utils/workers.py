"""Remember the worker processes of this process, to find out after an error whether one of them was killed."""

from collections.abc import Iterable
from multiprocessing.process import BaseProcess

_watched: list[BaseProcess] = []


def watch_workers(processes: Iterable[BaseProcess]) -> None:
    """Remember these workers instead of those of the last call."""
    _watched[:] = processes


def killed_worker() -> str | None:
    """A message about a worker that was killed or failed; None if all are running or ended normally."""
    for process in _watched:
        if process.exitcode:  # None while it runs, negative after a signal
            end = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "failed"
            return f"the worker process {process.pid} {end}; if memory was short (see dmesg), lower num_workers"
    return None
