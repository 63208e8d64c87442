"""Profiles some steps with torch's profiler: writes a trace, and a table of where the time of a step goes."""

import os
from bisect import bisect
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile, schedule

from utils.distributed import rank
from utils.errors import describe_error

WARM_UP = 5  # steps before profiling starts, in which kernels are compiled and selected, and the loader fills
PHASES = (
    "input",
    "student",
    "teacher",
    "head",
    "backward",
    "optimiser",
)  # names given to record_function
OPERATORS = 8  # rows of the table
_STEP = "ProfilerStep"  # the profiler's name for a step


class StepProfile:
    """Profiles `steps` steps on rank 0, after WARM_UP. Writes `folder`/trace.json.gz and logs a table with `log_line`.

    Use it as a context manager, and call `step` after every step. If the run ends early, the trace has fewer steps.
    """

    def __init__(self, steps: int, folder: Path, device: torch.device, log_line: Callable[[str], None]) -> None:
        self._path, self._log_line = folder / "trace.json.gz", log_line
        self._on_gpu = device.type == "cuda"
        self._profile = None
        if steps and rank() == 0:
            if not self._on_gpu:
                # Kineto, the library behind torch's profiler, asks for the properties of GPUs even if only the CPU is
                # profiled, and reports an error if there are none. Level 6 is above errors.
                os.environ.setdefault("KINETO_LOG_LEVEL", "6")
            self._profile = profile(
                activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if self._on_gpu else [])],
                schedule=schedule(wait=WARM_UP - 1, warmup=1, active=steps, repeat=1),
                on_trace_ready=self._report,
            )

    def __enter__(self) -> "StepProfile":
        if self._profile:
            self._profile.start()
        return self

    def step(self) -> None:
        """Tell the profiler that a step has ended."""
        if self._profile:
            self._profile.step()

    def __exit__(self, *error: object) -> None:
        if self._profile:
            self._profile.stop()
            if self._profile.step_num <= WARM_UP:
                self._log_line(f"no profile: profiling starts after {WARM_UP} steps, but the run had no more")

    def _report(self, profiled: profile) -> None:
        if profiled.step_num <= WARM_UP:
            return
        temporary = self._path.with_name(f".{os.getpid()}.{self._path.name}")  # the suffix .gz makes torch compress it
        place = f"{self._path}, open it in ui.perfetto.dev"
        try:
            profiled.export_chrome_trace(str(temporary))
            os.replace(temporary, self._path)
        except OSError as error:
            place = f"NOT WRITTEN: {describe_error(error)}"
        self._log_line(f"profile: {place}\n{table(profiled.events(), self._on_gpu)}")


def table(events: list[FunctionEvent], on_gpu: bool) -> str:
    """Format a table from a profiler's events: milliseconds per step of each phase and of the slowest operators.

    On a GPU these are the times of the kernels, by the phase that launched them. The last column is the time that
    launching took, and "idle" is the time in which no kernel was running. An event belongs to the phase during which it
    started, because backward runs in another thread.
    """
    on_device = [event for event in events if event.device_type != DeviceType.CPU and not event.is_user_annotation]
    events = [event for event in events if event.device_type == DeviceType.CPU]
    ends = [event.time_range.end for event in events if event.name == PHASES[-1]]
    steps = [event for event in events if event.name.startswith(_STEP) and any(_holds(event, end) for end in ends)]
    phases = [
        event
        for event in events
        if event.name in PHASES and any(_holds(step, event.time_range.start) for step in steps)
    ]
    phases.sort(key=_start)
    wall = sum(step.time_range.elapsed_us() for step in steps)
    host, device = dict.fromkeys(PHASES, 0.0), dict.fromkeys((*PHASES, "other"), 0.0)
    operators: dict[str, float] = defaultdict(float)
    for phase in phases:
        host[phase.name] += phase.time_range.elapsed_us()
    for event in events:
        kernels = sum(kernel.duration for kernel in event.kernels)
        if kernels:
            last = bisect(phases, _start(event), key=_start) - 1
            inside = last >= 0 and _holds(phases[last], _start(event))
            device[phases[last].name if inside else "other"] += kernels
        if event.name not in PHASES and not event.name.startswith(_STEP):
            operators[event.name] += kernels if on_gpu else event.self_cpu_time_total
    host["other"] = wall - sum(host.values())
    shares = {**device, "idle": wall - _covered(on_device)} if on_gpu else host
    largest = sorted(operators, key=operators.get, reverse=True)[:OPERATORS]

    def row(name: str, time: float, launched: float | None = None) -> str:
        more = "" if launched is None else f"{launched / len(steps) / 1000:>15.2f}"
        return f"{name:<40.40}{time / len(steps) / 1000:>12.2f}{100 * time / wall:>10.1f} %{more}"

    title = f"{len(steps)} steps, GPU" if on_gpu else f"{len(steps)} steps"
    return "\n".join(
        [
            f"{title:<40}{'ms/step':>12}{'share':>12}{'launched in ms' if on_gpu else '':>15}".rstrip(),
            *(row(name, time, host.get(name) if on_gpu else None) for name, time in shares.items()),
            "slowest operators",
            *(row(name, operators[name]) for name in largest),
        ]
    )


def _holds(event: FunctionEvent, time: float) -> bool:
    return event.time_range.start <= time <= event.time_range.end


def _start(event: FunctionEvent) -> float:
    return event.time_range.start


def _covered(events: list[FunctionEvent]) -> float:
    """The time during which at least one of the events was running."""
    total = until = 0.0
    for event in sorted(events, key=_start):
        total += max(0.0, event.time_range.end - max(until, _start(event)))
        until = max(until, event.time_range.end)
    return total
