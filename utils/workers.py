"""Worker processes of this process: which of them was killed, if an error suggests that one was."""

from collections.abc import Iterable
from multiprocessing.process import BaseProcess

_watched: list[BaseProcess] = []


def watch_workers(processes: Iterable[BaseProcess]) -> None:
    """Remember these workers, in place of those before."""
    _watched[:] = processes


def killed_worker() -> str | None:
    """A description of a worker that was killed or failed; None if there is none."""
    for process in _watched:
        if process.exitcode:  # None while it runs, negative after a signal
            end = f"was killed by signal {-process.exitcode}" if process.exitcode < 0 else "failed"
            return f"the worker process {process.pid} {end}; if memory was short (see dmesg), lower num_workers"
    return None
