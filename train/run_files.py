"""What a run opens at its start and closes at its end: output folder, log, checkpoints and signal handlers."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import BinaryIO

from train.checkpoint import PARTS
from train.curves import save_curves
from train.run_log import RunLog
from train.saver import Saver
from utils.distributed import from_rank_0, rank
from utils.errors import InputError
from utils.files import lock_folder, make_writable_folder

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # SIGHUP: the terminal was closed


class RunFiles:
    """The files of a run in `folder`, and the signals that end it.

    log: training.log, metrics.jsonl, TensorBoard and the progress bar; saver: writes checkpoints; stop_signal: the
    number of the signal in STOP_SIGNALS that has arrived, or 0.
    """

    def __init__(self, folder: Path, keep_checkpoints: int, total_steps: int) -> None:
        self.folder = folder
        self.log = RunLog(folder, total_steps)
        self.saver = Saver(folder, keep_checkpoints, self.log.line)
        self.stop_signal = 0
        self._interruptible = False
        self._lock: BinaryIO | None = None

    def lock(self) -> None:
        """Make the folder and lock it. Call it on rank 0 only. Raises OSError if another run writes there."""
        make_writable_folder(self.folder)
        self._lock = lock_folder(self.folder)

    @contextmanager
    def opened(self, first_step: int) -> Iterator[None]:
        """Open the log of a run that starts at `first_step`, and handle STOP_SIGNALS. At the end, close all.

        A signal that this process was started to ignore (SIGHUP, by nohup) is still ignored.
        """
        self.log.open(first_step)
        heeded = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        handlers = {number: signal.signal(number, self._on_signal) for number in heeded}
        try:
            with ExitStack() as stack:
                stack.callback(self.log.close)
                stack.callback(self.saver.finish)
                yield
        except RuntimeError:
            # A rank may be lost. Keep the handlers: torchrun's SIGTERM must not end this process before it has reported
            # which rank it is.
            handlers = {}
            raise
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def finish(self, step: int, stopped: bool) -> None:
        """Draw the curves, wait for the last checkpoint, and log how the run ended at `step`."""
        if rank() == 0:
            self.log.try_writing(lambda: save_curves(self.folder / "metrics.jsonl", self.folder / "curves.png"))
        self.saver.finish()
        where = "its checkpoint is not saved" if self.saver.unsaved is not None else self.folder / f"{step}{PARTS[0]}"
        self.log.line(f"{'stopped' if stopped else 'done'} at step {step}: {where if step else 'nothing to save'}")

    def require_saved(self) -> None:
        """Raise InputError on all ranks if the last checkpoint could not be written. Every rank must call it."""
        if (unsaved := from_rank_0(self.saver.unsaved)) is not None:
            raise InputError(f"{self.folder}: trained to the end, but the checkpoint of step {unsaved} is not saved")

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """In this block, a stop signal raises KeyboardInterrupt at once; so does one that arrived before the block."""
        self._interruptible = True
        try:
            if self.stop_signal:
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def _on_signal(self, number: int, frame: object) -> None:
        is_first, self.stop_signal = self.stop_signal == 0, number
        if self._interruptible and is_first:  # later signals would interrupt the ranks while they agree to stop
            raise KeyboardInterrupt
