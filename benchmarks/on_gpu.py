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
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.gpu.parts import PARTS
from benchmarks.gpu.report import Report

QUICK_LIMIT = 150.0  # seconds for a part with --quick, whose time is mostly that of starting Python on a busy machine
GRACE = 5.0  # seconds in which a part can end by itself after SIGTERM
MARKER = "ON_GPU_PART"  # environment variable by which the processes of a part are found
RESERVED = 60.0  # seconds that the other parts leave to each part that trains on real faces


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
        reasons = unavailable(device, report.machine) if number else {}
        if reason := next((reasons[need] for need in ("the device", *part.needs) if need in reasons), ""):
            report.record(number, result="skipped", reason=reason)
            continue
        values = {"out": report.out, "workers": min(12, os.cpu_count())}
        arguments = (part.quick or f"{part.full} --quick") if quick else part.full
        command = [word.format(**values) for word in shlex.split(arguments)]
        log, start = report.out / f"{part.name}.log", time.monotonic()
        try:
            report.record(number, result="running", command=shlex.join(["python", *command]))
            print(f"{part.name}: {part.title}", flush=True)
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


def unavailable(device: str, machine: dict[str, str]) -> dict[str, str]:
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


if __name__ == "__main__":
    sys.exit(main())
