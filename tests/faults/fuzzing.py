"""Gives randomly changed files to a reader and monitors it, in a process that test_changed_files.py starts.

A reader passes an input if it returns a result or raises InputError, and does not crash, hang, allocate much memory or
do anything that reading data does not need. Each input depends on the seed and on the previous inputs.
"""

import os
import random
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from mutation import WORDS, Seed, mutate

from utils.errors import InputError

MAX_SECONDS = 5  # for one input of some kilobytes; most take a millisecond
MAX_GROWTH = 64 * 2**20  # bytes by which memory may grow over all inputs of a run
MAX_CORPUS = 300  # largest number of seeds, including inputs that reached new lines
TRACE_EVERY = 8  # every eighth input is traced


@dataclass
class Target:
    """A reader under test: read(folder) reads the files in a folder.

    seeds: the files to change. module: the source file of the reader; inputs that reach new lines of it are kept as
    seeds.
    """

    read: Callable[[Path], Any]
    module: str
    seeds: list[Seed]
    others: dict[str, bytes] = field(default_factory=dict)  # files that are not changed
    words: Sequence[bytes] = tuple(WORDS)  # pieces to insert
    max_allocation: int = 2**29  # bytes that may be allocated at once, whether they are used or not
    parses_python: bool = False  # Python's parser raises MemoryError for a text that is nested too deeply


class _HangError(BaseException):
    pass


class _Monitor:
    """Detects actions that no reader of data needs: writing, importing, executing, starting processes, networking."""

    def __init__(self) -> None:
        self.armed, self.violation = False, ""
        self._known = {name.partition(".")[0] for name in sys.modules}
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if self.armed and (violation := self._forbidden(event, args)):
            self.violation = self.violation or violation
            raise RuntimeError(violation)

    def _forbidden(self, event: str, args: tuple) -> str:
        if event == "open" and isinstance(args[2], int) and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return f"opened {args[0]!r} for writing"
        if event == "import" and args[0].partition(".")[0] not in self._known:
            return f"imported {args[0]}"
        if (
            event == "exec"
            and isinstance(args[0], CodeType)
            and not (os.path.isfile(args[0].co_filename) or _is_importing())
        ):
            return f"executed code of {args[0].co_filename}"
        if event.startswith(("os.system", "os.exec", "os.posix_spawn", "os.fork", "subprocess.", "socket.", "ctypes.",
                             "os.remove", "os.rename", "os.mkdir", "shutil.",  "webbrowser.", "urllib.",
                             "code.__new__", "function.__new__")):  # fmt: skip
            return f"{event} {args!r:.200}"
        return ""


def _is_importing() -> bool:
    """Whether an import is running. The allowed libraries execute code from strings then, to define named tuples."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class _Lines:
    """A trace function that records which lines of one file were executed."""

    def __init__(self, file: str) -> None:
        self.file, self.covered, self.has_new = file, set[int](), False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(self.file) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_lineno not in self.covered:
            self.covered.add(frame.f_lineno)
            self.has_new = True
        return self._line


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _raise_hang(*_: object) -> None:
    raise _HangError


class _Fuzzer:
    """Gives changed files to the reader of a target."""

    def __init__(self, target: Target, seed: int, folder: Path) -> None:
        self.target, self.folder = target, folder
        self.source, self.corpus = random.Random(seed), list(target.seeds)
        self.originals = {file.file: file.pack(file.data) for file in target.seeds} | target.others
        for name, data in self.originals.items():
            Path(folder, name).parent.mkdir(parents=True, exist_ok=True)
            Path(folder, name).write_bytes(data)
        for file in target.seeds:  # every seed must be readable; this also fills imports and caches
            Path(folder, file.file).write_bytes(file.pack(file.data))
            target.read(folder)
            Path(folder, file.file).write_bytes(self.originals[file.file])
        self.lines, self.monitor = _Lines(target.module), _Monitor()
        signal.signal(signal.SIGALRM, _raise_hang)
        limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + target.max_allocation
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))
        self.peak = _peak_memory()

    def try_one(self, number: int) -> str:
        """Read one changed input. Returns what the reader did wrong, or "". An input that fails is kept."""
        file = mutate(self.source, self.source.choice(self.corpus), self.corpus, self.target.words)
        path = Path(self.folder, file.file)
        path.write_bytes(file.pack(file.data))
        failure = self._read(is_traced=number % TRACE_EVERY == 0)
        if (peak := _peak_memory()) > self.peak + MAX_GROWTH:
            failure, self.peak = failure or f"memory grew by {peak - self.peak} bytes", peak
        if self.monitor.violation:
            failure, self.monitor.violation = self.monitor.violation, ""
        if self.lines.has_new and len(self.corpus) < MAX_CORPUS:
            self.corpus.append(file)
        self.lines.has_new = False
        if failure:
            kept = path.with_name(f"failed-{number}-{path.name}")
            shutil.copy(path, kept)
            failure = f"{kept.name}: {failure[:500]}"
        path.write_bytes(self.originals[file.file])
        return failure

    def _read(self, is_traced: bool) -> str:
        """Read the files once, with the monitor. Returns what went wrong; "" after a result or an InputError."""
        signal.setitimer(signal.ITIMER_REAL, MAX_SECONDS)
        self.monitor.armed = True
        try:
            if is_traced:
                sys.settrace(self.lines)
            self.target.read(self.folder)
        except InputError as error:
            if _ran_out_of_memory(error) and not self.target.parses_python:
                return f"asked for more than {self.target.max_allocation} bytes: {error}"
        except _HangError:
            return f"took more than {MAX_SECONDS} seconds"
        except BaseException as error:
            return f"{type(error).__name__}: {error}"
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            self.monitor.armed = False
        return ""


def _peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(target: Target, times: int, seed: int, folder: Path, report: Callable[[str], None]) -> None:
    """Read `times` changed inputs in `folder`. `report` gets one line per failure, and "" regularly as a heartbeat.

    The changed file of an input that fails is kept as failed-N-FILE. After a crash or a hang in C code, the input is
    still in the folder. Stops after the tenth failure.
    """
    fuzzer, failures = _Fuzzer(target, seed, folder), 0
    for number in range(times):
        if failure := fuzzer.try_one(number):
            failures += 1
            report(failure)
            if failures == 10:
                break
        if number % 1000 == 0:
            report("")
