"""Check and measure training on a GPU in less than ten minutes, most valuable parts first.

    benchmarks/on_gpu.sh OUT
    benchmarks/on_gpu.sh OUT --parts step,head
    benchmarks/on_gpu.sh OUT --device cpu --quick    # tries the script itself, at tiny sizes

Each part is a command with its own time limit. A part that fails or takes too long does not stop the next one. The
folder OUT gets report.md and results.json, which are complete after every part, and PART.log with everything that a
part printed. With FACE_DATA set, the last parts train on real faces (config/lfw.py). The exit code is 0 if every part
that ran is ok, 1 if one is not or torch sees no GPU, 2 for wrong arguments, and 130 after a signal.
"""

import argparse
import importlib.util
import itertools
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from utils.files import write_text

QUICK_LIMIT = 150.0  # seconds for a part with --quick, whose time is mostly that of starting Python on a busy machine
GRACE = 5.0  # seconds in which a part can end by itself after SIGTERM
MARKER = "ON_GPU_PART"  # environment variable by which the processes of a part are found
MODULES = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "pyyaml": "yaml"}  # if not named as the package


class Part(NamedTuple):
    """A command with a time limit.

    what: a title for the report; seconds: the limit at full size; full, quick: the arguments for Python, at full and
    at tiny sizes; needs: what the part cannot run without, keys of `_lacking`.
    """

    name: str
    what: str
    seconds: float
    full: str
    quick: str
    needs: tuple[str, ...] = ()


CHECK, TINY = "benchmarks/gpu_checks.py", "teacher=cvlface_ir18 width=0.125"
EPOCH = "benchmarks/epoch.py --no-plain"
LFW = "compile=off num_workers={workers}"  # compiling would take longer than these short runs
RESERVED = 60.0  # seconds that the other parts leave to each part that trains on real faces
PARTS = [
    Part("machine", "versions, compiler, Triton", 40, f"{CHECK} machine", f"{CHECK} machine --quick"),
    Part(
        "steps", "steps in each data type that never wait for the device; losses compared with a CPU", 75,
        f"{CHECK} steps", f"{CHECK} steps --quick",
    ),
    Part(
        "safety", "a compiled student, a step that is not finite, save and resume", 140,
        f"{CHECK} safety", f"{CHECK} safety --quick",
    ),
    Part(
        "step", "a training step, MS1MV2's 85,742 classes", 120,
        "benchmarks/step.py --batch 384 1536 --classes 85742 --steps 10 --no-plain",
        f"benchmarks/step.py --batch 8 --classes 300 --rounds 1 {TINY}",
    ),
    Part(
        "step_2m", "a training step, two million classes", 110,
        "benchmarks/step.py --batch 384 1536 --classes 2000000 --steps 10 --no-plain",
        f"benchmarks/step.py --batch 8 --classes 500 --rounds 1 --no-plain {TINY}",
    ),
    Part(
        "head", "the head alone, by classes per block", 100,
        "benchmarks/head.py --batch 384 1536 --classes 85742 2000000 --block 16384 32768 65536 --no-plain --rounds 5",
        "benchmarks/head.py --batch 8 --classes 300 --block 128 --no-plain --rounds 1",
    ),
    Part(
        "student", "the student alone, by memory format", 100,
        "benchmarks/networks.py student --batch 384 --calls 10",
        "benchmarks/networks.py student --batch 4 --rounds 1 width=0.125",
    ),
    Part(
        "teacher", "the live teacher, eager and compiled", 90,
        "benchmarks/networks.py teacher --batch 384 --calls 10",
        "benchmarks/networks.py teacher --batch 4 --rounds 1 teacher=cvlface_ir18",
    ),
    Part(
        "epoch", "the whole training loop from records", 100,
        f"{EPOCH} batch_size=384 num_workers={{workers}} profile=5 --images 96000 --steps 200",
        f"{EPOCH} batch_size=2 num_workers=1 profile=1 --images 16 --classes 50 --steps 6 {TINY}",
    ),
    Part(
        "embedding", "embedding images from records", 40,
        "benchmarks/networks.py embedding --images 20000 --rounds 1 num_workers={workers}",
        f"benchmarks/networks.py embedding --images 4 --rounds 1 num_workers=1 {TINY}",
    ),
    Part(
        "memory", "peak memory of two steps and a checkpoint, two million classes", 90,
        f"{CHECK} memory", f"{CHECK} memory --quick",
    ),
    Part(
        "rank", "one rank under torchrun (NCCL)", 40,
        f"-m torch.distributed.run --standalone --nproc_per_node=1 {CHECK} rank",
        f"-m torch.distributed.run --standalone --nproc_per_node=1 {CHECK} rank --quick",
    ),
    Part(
        "tests", "the tests that need a GPU", 50,
        "-m pytest -m gpu", "-m pytest -m gpu", needs=("a GPU", "pytest"),
    ),
    Part(
        "lfw_teacher", "12 epochs on real faces, with the teacher", 75,
        f"{CHECK} lfw train/train_AdaDistill.py num_epoch=12 {LFW} output={{out}}/lfw_teacher",
        f"{CHECK} lfw --quick train/train_AdaDistill.py output={{out}}/lfw_teacher", needs=("FACE_DATA",),
    ),
    Part(
        "lfw_alone", "12 epochs on real faces, without a teacher", 75,
        f"{CHECK} lfw train/train_standalone.py num_epoch=12 {LFW} output={{out}}/lfw_alone",
        f"{CHECK} lfw --quick train/train_standalone.py output={{out}}/lfw_alone", needs=("FACE_DATA",),
    ),
]  # fmt: skip


def main() -> int:
    args = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    args.out.mkdir(parents=True, exist_ok=True)
    report = Report(args.out, [PARTS[0], *(part for part in PARTS[1:] if part.name in args.parts)])
    report.write()
    deadline, environment = time.monotonic() + 60 * args.minutes, dict(os.environ, PYTHONUNBUFFERED="1")
    if args.device == "cpu":  # one thread, because tiny tensors gain nothing from more
        environment.update(CUDA_VISIBLE_DEVICES="", OMP_NUM_THREADS="1")
    if "FACE_DATA" in environment:  # parts run in the repository's folder
        environment["FACE_DATA"] = str(Path(environment["FACE_DATA"]).resolve())
    try:
        run_parts(report, args.quick, args.device, deadline, environment)
    except KeyboardInterrupt:
        return 130
    print(f"{args.out / 'report.md'}", flush=True)
    failed = any(entry["result"] not in ("ok", "skipped", "not run") for entry in report.entries)
    return int(failed or report.machine.get("device") != args.device)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="on_gpu.sh", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", metavar="OUT", type=Path, help="folder for the results")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="default: cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes and few steps, to try the script itself")
    parser.add_argument("--minutes", type=float, default=9.5, help="limit for all parts together (default: 9.5)")
    names = [part.name for part in PARTS]
    parser.add_argument("--parts", default=",".join(names), help="default: %(default)s; machine always runs")
    args = parser.parse_args()
    args.out, args.parts = args.out.resolve(), args.parts.split(",")
    if unknown := [name for name in args.parts if name not in names]:
        parser.error(f"--parts: unknown {', '.join(unknown)} (expected {', '.join(names)})")
    if args.device == "cpu" and not args.quick:
        parser.error("--device cpu needs --quick: the full sizes would take hours on a CPU")
    return args


class Report:
    """The results so far, in OUT/report.md and OUT/results.json. entries: one dict per part, in the order of parts."""

    def __init__(self, out: Path, parts: Sequence[Part]) -> None:
        self.out, self.parts = out, parts
        self.entries: list[dict[str, Any]] = [
            {"part": part.name, "what": part.what, "result": "not run", "seconds": None, "reason": "", "command": ""}
            for part in parts
        ]

    @property
    def machine(self) -> dict[str, str]:
        """The packages that are missing, and the facts of the table that the part `machine` prints, by name."""
        (table, *_) = [*self._tables("machine"), []]
        return {**{row["fact"]: row["value"] for row in table}, "missing packages": ", ".join(missing()) or "none"}

    def record(self, number: int, **values: Any) -> None:
        """Set values of the entry of part `number`, and write the files."""
        self.entries[number].update(values)
        self.write()

    def write(self) -> None:
        """Write both files. Each is replaced as a whole, so it is complete at any time."""
        content = [{**entry, "tables": self._tables(entry["part"])} for entry in self.entries]
        results = {"machine": self.machine, "parts": content}
        write_text(self.out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_text(self.out / "report.md", self._page())

    def _page(self) -> str:
        lines = ["# Training on this machine", "", "| fact | value |", "|---|---|"]
        lines += [f"| {fact} | {value} |" for fact, value in self.machine.items()]
        lines += ["", "| part | result | seconds | what |", "|---|---|---|---|"]
        for entry in self.entries:
            seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.0f}"
            reason = f": {entry['reason']}" if entry["reason"] else ""
            lines.append(f"| {entry['part']} | {entry['result']}{_in_cell(reason)} | {seconds} | {entry['what']} |")
        for entry in self.entries[1:]:
            if shown := _shown(self._log(entry["part"])):
                lines += ["", f"## {entry['part']}: {entry['what']}", "", f"`{entry['command']}`", "", *shown]
        return "\n".join(lines) + "\n"

    def _tables(self, name: str) -> list[list[dict[str, str]]]:
        """The tables that a part printed: for each row, its cells by the names in the header."""
        groups = re.findall(r"(?:^\|.*\n?)+", "\n".join(_shown(self._log(name))), re.MULTILINE)
        tables = [[_cells(line) for line in group.splitlines()] for group in groups]
        return [[dict(zip(head, row, strict=False)) for row in rows] for head, _, *rows in tables if rows]

    def _log(self, name: str) -> list[str]:
        path = self.out / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def run_parts(report: Report, quick: bool, device: str, deadline: float, environment: dict[str, str]) -> None:
    """Run the parts of the report, one after the other, until `deadline` (of time.monotonic)."""
    for path in (report.out / f"{part.name}.log" for part in report.parts):
        path.unlink(missing_ok=True)  # of an earlier run
    for number, part in enumerate(report.parts):
        later = [other for other in report.parts[number + 1 :] if "FACE_DATA" in other.needs]
        reserved = RESERVED * len(later) if "FACE_DATA" in environment else 0.0
        seconds = min(QUICK_LIMIT if quick else part.seconds, deadline - time.monotonic() - GRACE - reserved)
        if seconds <= 0:
            report.record(number, reason="no time left")
            continue
        reasons = _lacking(device, report.machine) if number else {}
        if reason := next((reasons[need] for need in ("the device", *part.needs) if need in reasons), ""):
            report.record(number, result="skipped", reason=reason)
            continue
        values = {"out": report.out, "workers": min(12, os.cpu_count())}
        command = [word.format(**values) for word in shlex.split(part.quick if quick else part.full)]
        log, start = report.out / f"{part.name}.log", time.monotonic()
        try:
            report.record(number, result="running", command=shlex.join(["python", *command]))
            print(f"{part.name}: {part.what}", flush=True)
            result, reason = run_command([sys.executable, *command], log, seconds, environment)
        except KeyboardInterrupt:
            report.record(number, result="interrupted", seconds=time.monotonic() - start)
            raise
        report.record(number, result=result, reason=reason, seconds=time.monotonic() - start)
        print(f"    {result} {reason}".rstrip(), flush=True)


def run_command(command: list[str], log: Path, seconds: float, environment: dict[str, str]) -> tuple[str, str]:
    """Run a command for at most `seconds`, with its output in `log`. Returns the result and the reason for it.

    Leaves no process behind, also after KeyboardInterrupt.
    """
    marker = f"{os.getpid()}.{log.stem}"
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=ROOT, env={**environment, MARKER: marker}, stdin=subprocess.DEVNULL, stdout=output,
            stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    process.wait(GRACE)
            _kill_marked(marker)
            process.wait()
    if code is None:
        return "timed out", f"after {seconds:.0f} s"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    last = lines[-1] if lines else "no output"
    return ("failed", f"exit code {code}: {last}") if code else ("ok", "")


def _kill_marked(marker: str) -> None:
    """Kill the processes of a part, also ranks and workers in sessions of their own. They have inherited the marker."""
    entry = f"{MARKER}={marker}".encode()
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):  # ended meanwhile, or of another user
            if entry in path.read_bytes().split(b"\0"):
                os.kill(int(path.parent.name), signal.SIGKILL)


def _lacking(device: str, machine: dict[str, str]) -> dict[str, str]:
    """What parts cannot have on this machine, with the reason."""
    reasons = {}
    if "device" not in machine:
        reasons["the device"] = "the part machine failed"
    elif machine["device"] != device:
        reasons["the device"] = "torch sees no GPU here"
    if device != "cuda":
        reasons["a GPU"] = "needs a GPU"
    if importlib.util.find_spec("pytest") is None:
        reasons["pytest"] = "pytest is not installed"
    if "FACE_DATA" not in os.environ:
        reasons["FACE_DATA"] = "FACE_DATA is not set: the folder with real faces is needed"
    return reasons


def missing() -> list[str]:
    """The lines of requirements/requirement.txt whose package cannot be imported."""
    text = (ROOT / "requirements" / "requirement.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    found = [importlib.util.find_spec(MODULES.get(name, name)) is not None for name in names]
    return [line for line, is_there in zip(lines, found, strict=True) if not is_there]


def _shown(log: Sequence[str]) -> list[str]:
    """The lines of a log that belong into the report: the rows of tables, and blocks in fences."""
    shown: list[str] = []
    in_fence = False
    for line, following in itertools.zip_longest(log, log[1:], fillvalue=""):
        fence = line.startswith("```")
        begins = (fence and not in_fence) or (line.startswith("|") and following.startswith("|---"))
        if begins and shown:
            shown.append("")
        if line.startswith("|") or fence or in_fence:
            shown.append(line)
        in_fence ^= fence
    return [*shown, "```"] if in_fence else shown  # the part may have ended inside a block


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    sys.exit(main())
