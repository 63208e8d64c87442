"""Mutated files, read in a process of their own that is watched: what test_changed_files.py feeds our readers with.

An input survives where its reader gives a result or an InputError, and neither crashes, nor hangs, nor asks for memory,
nor does anything that data has no business with. Each input depends on the seed and on those before it.
"""

import contextlib
import os
import pickletools
import random
import re
import resource
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

SECONDS = 5  # for one input of some kilobytes, most of which take a millisecond
ROOM = 64 * 2**20  # bytes by which memory may grow over all inputs of a run, each of some kilobytes
KEPT = 300  # inputs that reached new lines
TRACED = 8  # of so many inputs one is traced

_NUMBERS = (0, 1, 2, 3, 4, 8, 127, 128, 255, 256, 1023, 32767, 65535, 2**24, 2**29 - 1, 2**31 - 1, 2**32 - 1, 2**63 - 1)
_WORDS = [
    b"", b"0", b"-1", b"1", b"nan", b"inf", b"-inf", b"1e400", b"-0.0", b"9" * 30, b"9" * 5000, b"0x" + b"f" * 2900,
    b"9223372036854775807", b"4294967296", b"\x00", b"\xff\xfe", b"\xc2\xa0", b"\r", b"\n", b"\t", b"\x1c", b"..",
    b"../../x", b"/etc/passwd", b"~", b"~nobody\x00", b"$HOME", b"${X", b"[" * 150, b"(" * 1000, b"-" * 2900,
    b"1+" * 1400 + b"1", b"{1:2}", b"{}", b"[]", b"[[1]]", b"()", b"None", b"True", b"b'x'", b"'", b'"', b"1j", b"=",
    b"a" * 300, b"lambda: 0", b"__import__('os').system('x')", b"\xed\xa0\x80", b"null", b'{"a": 1}', b"[1, 2, 3]",
    b"1.5", b"*", b"#", b"\\x", b"\\",
]  # fmt: skip


@dataclass
class Seed:
    """What a file of a set holds, to be changed: as `pack(data)` in `file`. tokens: how its pieces are found."""

    file: str
    data: bytes
    tokens: Callable[[bytes], list[bytes]] | None = None
    pack: Callable[[bytes], bytes] = bytes


@dataclass
class Target:
    """read(folder) reads the files of a folder, where `seeds` stand; `module` is the file whose lines are counted."""

    read: Callable[[Path], Any]
    module: str
    seeds: list[Seed]
    others: dict[str, bytes] = field(default_factory=dict)  # files that stay as they are
    words: Sequence[bytes] = tuple(_WORDS)
    addresses: int = 2**29  # bytes that may be asked for at once, whether they are used or not
    parses_python: bool = False  # Python's parser calls it out of memory where a text is nested too deeply


def opcodes(data: bytes) -> list[bytes]:
    """A pickle in pieces of one opcode with its argument; what cannot be read is one piece."""
    starts = []
    with contextlib.suppress(Exception):  # what stands before the break is enough
        for _, _, at in pickletools.genops(data):
            starts.append(at)
    return [data[a:b] for a, b in zip([0, *starts[1:]], [*starts[1:], len(data)], strict=True)] if starts else [data]


def words(data: bytes) -> list[bytes]:
    """A text in words and what stands between them."""
    return re.findall(rb"[\w.+-]+|[^\w.+-]", data)


def _changed(source: random.Random, seed: Seed, corpus: list[Seed], extra: Sequence[bytes]) -> Seed:
    data = seed.data
    for _ in range(source.choice((1, 1, 1, 2, 3, 6))):
        if seed.tokens and source.random() < 0.6:
            data = b"".join(_pieces_changed(source, seed.tokens(data), source.choice(corpus), extra))
        else:
            data = _bytes_changed(source, data, source.choice(corpus).data)
    return Seed(seed.file, data[: 2**17], seed.tokens, seed.pack)


def _pieces_changed(source: random.Random, pieces: list[bytes], other: Seed, extra: Sequence[bytes]) -> list[bytes]:
    at, to = (source.randrange(len(pieces) + 1) for _ in range(2))
    kind = source.randrange(7)
    if kind == 0:
        del pieces[at : at + source.choice((1, 1, 2, 8))]
    elif kind == 1:
        pieces[to:to] = pieces[at : at + source.choice((1, 2, 8))]
    elif kind == 2:
        pieces[at : at + 1] = [source.choice(extra)]
    elif kind == 3:
        pieces.insert(at, source.choice(extra))
    elif kind == 4 and other.tokens:
        others = other.tokens(other.data)
        start = source.randrange(len(others) + 1)
        pieces[at : at + source.choice((0, 1, 4))] = others[start : start + source.choice((1, 2, 8))]
    elif kind == 5:
        pieces[at : at + 1], pieces[to : to + 1] = pieces[to : to + 1], pieces[at : at + 1]
    elif at < len(pieces):
        pieces[at] = _bytes_changed(source, pieces[at], other.data)
    return pieces


def _bytes_changed(source: random.Random, data: bytes, other: bytes) -> bytes:
    at, to = sorted(source.randrange(len(data) + 1) for _ in range(2))
    kind = source.randrange(8)
    if kind == 0:
        return data[:at] + bytes([data[at] ^ 1 << source.randrange(8)]) + data[at + 1 :] if at < len(data) else data
    if kind == 1:
        return data[:at]
    if kind in (2, 3):  # a number over what stands there, or between
        width = source.choice((1, 2, 4, 8))
        number = source.choice(_NUMBERS) % 256**width
        return data[:at] + number.to_bytes(width, source.choice(("little", "big"))) + data[at + width * (kind == 2) :]
    if kind == 4:
        return data[:at] + data[at : at + source.choice((1, 4, 16, 64))] + data[at:]
    if kind == 5:
        return data[:at] + data[min(to, at + source.choice((1, 4, 16, 64))) :]
    if kind == 6:
        start = source.randrange(len(other) + 1)
        return data[:at] + other[start : start + source.choice((1, 4, 16, 64, 4096))] + data[to:]
    return data[:at] + source.randbytes(source.choice((1, 2, 8))) + data[at:]


class _Hang(BaseException):
    pass


class _Watch:
    """Notes what a reader does that data has no business with."""

    def __init__(self) -> None:
        self.armed, self.seen = False, ""
        self._known = {name.partition(".")[0] for name in sys.modules}
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple) -> None:
        if self.armed and (what := self._forbidden(event, args)):
            self.seen = self.seen or what
            raise RuntimeError(what)

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
    """Whether a module is on its way in: those of the libraries above make named tuples by executing texts."""
    frame = sys._getframe()
    while frame is not None:
        if frame.f_code.co_filename == "<frozen importlib._bootstrap>":
            return True
        frame = frame.f_back
    return False


class _Lines:
    """The lines of one file that ran, in the inputs that are traced."""

    def __init__(self, file: str) -> None:
        self.file, self.seen, self.new = file, set[int](), False

    def __call__(self, frame: FrameType, event: str, arg: Any) -> Any:
        return self._line if frame.f_code.co_filename.endswith(self.file) else None

    def _line(self, frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_lineno not in self.seen:
            self.seen.add(frame.f_lineno)
            self.new = True
        return self._line


def _ran_out_of_memory(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, MemoryError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _raise_hang(*_: object) -> None:
    raise _Hang


def fuzz(target: Target, times: int, seed: int, folder: Path, report: Callable[[str], None]) -> None:
    """Read `times` changed inputs in `folder`; `report` gets a line of each that does not survive, and
    empty ones in between.

    The changed file of an input that fails is kept under failed-N-FILE. A crash or a hang in C leaves the input in the
    folder. Stops at the tenth failure.
    """
    from utils.errors import InputError

    source, corpus, failures = random.Random(seed), list(target.seeds), 0
    originals = {one.file: one.pack(one.data) for one in target.seeds} | target.others
    for file, data in originals.items():
        Path(folder, file).parent.mkdir(parents=True, exist_ok=True)
        Path(folder, file).write_bytes(data)
    for one in target.seeds:  # imports and caches are filled, and every seed is as it should be
        Path(folder, one.file).write_bytes(one.pack(one.data))
        target.read(folder)
        Path(folder, one.file).write_bytes(originals[one.file])
    lines, watch = _Lines(target.module), _Watch()
    signal.signal(signal.SIGALRM, _raise_hang)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + target.addresses, resource.RLIM_INFINITY))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    for number in range(times):
        one = _changed(source, source.choice(corpus), corpus, target.words)
        path = Path(folder, one.file)
        path.write_bytes(one.pack(one.data))
        wrong = ""
        traced = number % TRACED == 0
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        watch.armed = True
        try:
            if traced:
                sys.settrace(lines)
            target.read(folder)
        except InputError as error:
            if _ran_out_of_memory(error) and not target.parses_python:
                wrong = f"asked for more than {target.addresses} bytes: {error}"
        except _Hang:
            wrong = f"took more than {SECONDS} seconds"
        except BaseException as error:
            wrong = f"{type(error).__name__}: {error}"
        finally:
            sys.settrace(None)
            signal.setitimer(signal.ITIMER_REAL, 0)
            watch.armed = False
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if peak > before + ROOM:
            wrong, before = wrong or f"memory grew by {peak - before} bytes", peak
        if watch.seen:
            wrong, watch.seen = watch.seen, ""
        if lines.new and len(corpus) < KEPT:
            corpus.append(one)
        lines.new = False
        if wrong:
            failures += 1
            kept = path.with_name(f"failed-{number}-{path.name}")
            shutil.copy(path, kept)
            report(f"{kept.name}: {wrong[:500]}")
            if failures == 10:
                break
        path.write_bytes(originals[one.file])
        if number % 1000 == 0:
            report("")
