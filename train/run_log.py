"""What a run leaves to read: training.log, metrics.jsonl, TensorBoard scalars, a progress bar. Rank 0 alone writes."""

import json
import logging
import math
import os
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.distributed import rank
from utils.files import atomic_write


class _FileHandler(logging.FileHandler):
    def handleError(self, record: logging.LogRecord) -> None:
        """The disk is full: the line is on the screen, and in the file once there is room."""


class _Lines:
    """A file of lines. What cannot be written when it is given is written before the next one."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - open as long as the run
        self._rest = b""

    def write(self, line: str) -> None:
        """Raises OSError where the disk is full; the line is not lost."""
        self._rest += line.encode()
        while self._rest:
            self._rest = self._rest[self._file.write(self._rest) :]

    def close(self) -> None:
        try:
            self.write("")
        finally:
            self._file.close()


class _Screen:
    """Standard output or error; where that is a file on a full disk, what cannot be written is left out."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class _BarHandler(logging.Handler):
    """Writes lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=_Screen(sys.stdout))
        _Screen(sys.stdout).flush()


def _not_a_number(value: float | None) -> bool:
    return value is None or not math.isfinite(value)


class RunLog:
    """Lines, metrics and progress of one run in `folder`; does nothing on ranks other than 0.

    first_step: the step that training goes on from. What earlier tries left after it is taken out of metrics.jsonl and
    hidden in TensorBoard, so that each step stands once.
    """

    def __init__(self, folder: str | os.PathLike, first_step: int, total_steps: int) -> None:
        self.active = rank() == 0
        self.evaluated: set[int] = set()
        if not self.active:
            return
        folder = Path(folder)
        self._logger = logging.getLogger(f"run {folder}")
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in (_BarHandler(), _FileHandler(folder / "training.log")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._logger.addHandler(handler)
        self._keep_metrics_until(folder / "metrics.jsonl", first_step)
        self._metrics = _Lines(folder / "metrics.jsonl")
        self._board_folder = str(folder / "tensorboard")
        self._board = SummaryWriter(self._board_folder, purge_step=first_step + 1 if first_step else 0)
        self._on_board: list[dict[str, Any]] = []  # of the last step
        self._not_on_board: list[dict[str, Any]] = []
        self._bar = tqdm(
            total=total_steps,
            initial=first_step,
            desc="training",
            unit="step",
            dynamic_ncols=True,
            file=_Screen(sys.stderr),
        )

    def _keep_metrics_until(self, path: Path, step: int) -> None:
        lines = []
        if path.is_file() and step:
            for line in path.read_text().splitlines(keepends=True):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the line that a kill cut short
                if entry["step"] <= step:
                    lines.append(line.rstrip("\n") + "\n")
                    if entry.get("kind") == "evaluation":
                        self.evaluated.add(entry["step"])
        with atomic_write(path) as file:
            file.write("".join(lines).encode())

    def line(self, text: str) -> None:
        """A line on the screen and in training.log."""
        if self.active:
            self._logger.info(text)

    def advance(self) -> None:
        """One step done."""
        if self.active:
            self._bar.update()

    def metrics(self, step: int, kind: str, values: dict[str, float | None], **extra: float) -> None:
        """A line of metrics.jsonl and a TensorBoard scalar each, under `kind` ("training" or "evaluation").

        A figure that is None or not finite is null in the line and not in TensorBoard.
        """
        if not self.active:
            return
        numbers = {name: None if _not_a_number(value) else value for name, value in {**values, **extra}.items()}
        entry: dict[str, Any] = {"step": step, "kind": kind, **numbers}
        self._not_on_board.append(entry)
        self.unless_full(lambda: self._metrics.write(json.dumps(entry, allow_nan=False) + "\n"))
        self.unless_full(self._fill_board)

    def _fill_board(self) -> None:
        try:
            if self._board is None:
                first = self._not_on_board[0]["step"]
                self._board = SummaryWriter(self._board_folder, purge_step=first)
                again = [entry for entry in self._on_board if entry["step"] == first]
                self._not_on_board, self._on_board = again + self._not_on_board, []
            for entry in self._not_on_board:
                for name in entry.keys() - {"step", "kind"}:
                    if entry[name] is not None:
                        self._board.add_scalar(f"{entry['kind']}/{name}", entry[name], entry["step"])
            self._board.flush()
        except OSError:
            self._close_board()
            raise
        last = self._not_on_board[-1]["step"]
        self._on_board = [entry for entry in self._on_board + self._not_on_board if entry["step"] == last]
        self._not_on_board = []

    def _close_board(self) -> None:
        board, self._board = self._board, None
        if board is not None:
            with suppress(OSError):
                board.close()

    def retry(self) -> None:
        """Write lines of metrics that could not be written before."""
        if self.active:
            self.unless_full(lambda: self._metrics.write(""))

    def unless_full(self, write: Callable[[], None]) -> None:
        """Write, on rank 0; an OSError (disk full, permission) is told, and training goes on."""
        try:
            write()
        except OSError as error:
            self.line(f"NOT WRITTEN: {error}; training goes on")

    def postfix(self, **values: float | str) -> None:
        """What the progress bar shows beside the steps."""
        if self.active:
            self._bar.set_postfix(values)

    def close(self) -> None:
        """Close the files and the bar."""
        if self.active:
            self._bar.close()
            self.unless_full(self._metrics.close)
            self._close_board()
            for handler in list(self._logger.handlers):
                with suppress(OSError):
                    handler.close()
                self._logger.removeHandler(handler)


class Rate:
    """Images a second since the last reading."""

    def __init__(self) -> None:
        self._images, self._since = 0, time.perf_counter()

    def add(self, images: int) -> None:
        """So many images were processed."""
        self._images += images

    def read(self) -> float:
        """Images a second, and start again."""
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return rate
