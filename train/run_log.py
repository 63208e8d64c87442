"""The log of a run: training.log, metrics.jsonl, TensorBoard scalars and a progress bar. Only rank 0 writes."""

import json
import logging
import math
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TextIO

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from utils.distributed import rank
from utils.errors import describe_error
from utils.files import write_text


class RunLog:
    """Lines, metrics and progress of one run in `folder`. Does nothing on ranks other than 0.

    evaluated: the metrics, by step, of evaluations that were already logged by an earlier part of the run.
    """

    def __init__(self, folder: Path, total_steps: int) -> None:
        self.active = rank() == 0
        self.evaluated: dict[int, dict[str, Any]] = {}
        self._folder, self._total_steps = folder, total_steps
        self._logger = logging.getLogger(f"run {folder}")
        self._metrics: _LineFile | None = None
        self._board = _Board(folder / "tensorboard")
        self._bar: tqdm | None = None

    def open(self, first_step: int) -> None:
        """Open the files. Metrics that an earlier part of the run logged after `first_step` are removed or hidden."""
        if not self.active:
            return
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        for handler in (_BarHandler(), _LogFileHandler(self._folder / "training.log")):
            handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
            self._logger.addHandler(handler)
        self._keep_metrics_until(self._folder / "metrics.jsonl", first_step)
        self._metrics = _LineFile(self._folder / "metrics.jsonl")
        self._board.open(first_step)
        self._bar = tqdm(
            total=self._total_steps, initial=first_step, desc="training", unit="step", dynamic_ncols=True,
            file=_Screen(sys.stderr),
        )  # fmt: skip

    def _keep_metrics_until(self, path: Path, step: int) -> None:
        lines = []
        if path.is_file() and step:
            for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
                try:
                    entry = json.loads(line)
                except json.JSONDecodeError:
                    continue  # a line that a kill cut short
                if entry["step"] <= step:
                    lines.append(line.rstrip("\n") + "\n")
                    if entry.get("kind") == "evaluation":
                        self.evaluated[entry["step"]] = entry
        write_text(path, "".join(lines))

    def line(self, text: str) -> None:
        """Write a line to the screen and to training.log."""
        if self.active:
            self._logger.info(text)

    def advance(self) -> None:
        """Move the progress bar by one step."""
        if self.active:
            self._bar.update()

    def metrics(self, step: int, kind: str, values: dict[str, float | None], **extra: float) -> None:
        """Write `values` and `extra` to metrics.jsonl as one line, and to TensorBoard.

        kind: "training" or "evaluation". A value that is None or not finite is null in the line and left out of
        TensorBoard.
        """
        if not self.active:
            return
        numbers = {name: value if _is_finite(value) else None for name, value in {**values, **extra}.items()}
        entry: dict[str, Any] = {"step": step, "kind": kind, **numbers}
        self.try_writing(lambda: self._metrics.write(json.dumps(entry, allow_nan=False, ensure_ascii=False) + "\n"))
        self.try_writing(lambda: self._board.write(entry))

    def retry(self) -> None:
        """Try again to write the lines of metrics.jsonl that could not be written."""
        if self.active:
            self.try_writing(lambda: self._metrics.write(""))

    def try_writing(self, write: Callable[[], None]) -> None:
        """Call `write`. If it raises OSError (disk full, no permission), log that and continue. For rank 0."""
        try:
            write()
        except OSError as error:
            self.line(f"NOT WRITTEN: {describe_error(error)}; training continues")

    def postfix(self, **values: float | str) -> None:
        """Show values at the end of the progress bar."""
        if self.active:
            self._bar.set_postfix(values)

    def close(self) -> None:
        """Close the files and the progress bar."""
        if not self.active:
            return
        self._bar.close()
        self.try_writing(self._metrics.close)
        self._board.close()
        for handler in list(self._logger.handlers):
            with suppress(OSError):
                handler.close()
            self._logger.removeHandler(handler)


class _Board:
    """TensorBoard scalars. Entries that could not be written (disk full) are written with the next entry."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._writer: SummaryWriter | None = None
        self._written: list[dict[str, Any]] = []  # entries of the last written step
        self._waiting: list[dict[str, Any]] = []  # entries that could not be written yet

    def open(self, first_step: int) -> None:
        """Start a writer that hides what an earlier part of the run wrote after `first_step`."""
        self._writer = self._new_writer(first_step + 1 if first_step else 0)

    def _new_writer(self, purge_step: int) -> SummaryWriter:
        """A writer that hides what earlier files contain from `purge_step` on.

        TensorBoard reads files in the order of the times in their names. If the clock has jumped back, earlier files
        are renamed to earlier times, so that the new file is still the last one.
        """
        files = sorted(Path(self._folder).glob(f"events.out.tfevents.{'[0-9]' * 10}.*"))
        times = [int(path.name.split(".")[3]) for path in files]  # seconds
        excess = max(times, default=-1) + 1 - int(time.time())
        for path, seconds in zip(files, times, strict=True):
            if excess > 0:
                path.rename(path.with_name(path.name.replace(f"{seconds:010d}", f"{seconds - excess:010d}", 1)))
        return SummaryWriter(self._folder, purge_step=purge_step)

    def write(self, entry: dict[str, Any]) -> None:
        """Write the entry and those that are waiting. Raises OSError; then all of them wait."""
        self._waiting.append(entry)
        try:
            if self._writer is None:
                first = self._waiting[0]["step"]
                # This hides all entries of the step `first`, so all of them are written again.
                self._writer = self._new_writer(first)
                again = [entry for entry in self._written if entry["step"] == first]
                self._waiting, self._written = again + self._waiting, []
            for waiting in self._waiting:
                for name in waiting.keys() - {"step", "kind"}:
                    if waiting[name] is not None:
                        self._writer.add_scalar(f"{waiting['kind']}/{name}", waiting[name], waiting["step"])
            self._writer.flush()
        except OSError:
            self.close()
            raise
        last = self._waiting[-1]["step"]
        self._written = [entry for entry in self._written + self._waiting if entry["step"] == last]
        self._waiting = []

    def close(self) -> None:
        """Close the writer."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with suppress(OSError):
                writer.close()


class _LineFile:
    """A file of lines. Lines that could not be written are written before the next one."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "ab", buffering=0)  # noqa: SIM115 - it stays open until the run ends
        self._rest = b""

    def write(self, line: str) -> None:
        """Write a line. Raises OSError if the disk is full; the line is kept for the next call."""
        self._rest += line.encode()
        while self._rest:
            self._rest = self._rest[self._file.write(self._rest) :]

    def close(self) -> None:
        """Write the lines that could not be written before, and close the file. Raises OSError."""
        try:
            self.write("")
        finally:
            self._file.close()


class _LogFileHandler(logging.FileHandler):
    def __init__(self, path: Path) -> None:
        super().__init__(path, encoding="utf-8")

    def handleError(self, record: logging.LogRecord) -> None:
        """Ignore a line that cannot be written (disk full). It is still shown on the screen."""


class _BarHandler(logging.Handler):
    """Writes lines above the progress bar."""

    def emit(self, record: logging.LogRecord) -> None:
        screen = _Screen(sys.stdout)
        with tqdm.external_write_mode(file=screen):
            screen.write(self.format(record) + "\n")
            screen.flush()  # before tqdm draws the bar again


class _Screen:
    """Standard output or error. Text that cannot be written (a file on a full disk) is dropped.

    It equals its stream, because tqdm clears the bar before it writes a line only if it knows both streams.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __eq__(self, other: object) -> bool:
        return self._stream == getattr(other, "_stream", other)

    def __hash__(self) -> int:
        return hash(self._stream)

    def write(self, text: str) -> None:
        with suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


class Rate:
    """Images per second since the last call of `read`."""

    def __init__(self) -> None:
        self._images, self._since = 0, time.perf_counter()

    def add(self, images: int) -> None:
        """Count images that were processed."""
        self._images += images

    def read(self) -> float:
        """Return the images per second, and start counting again."""
        now = time.perf_counter()
        rate = self._images / max(now - self._since, 1e-9)
        self._images, self._since = 0, now
        return rate
