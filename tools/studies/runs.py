"""Train and score the runs of a study, one after another or several at once."""

import json
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch

from config import ROOT
from tools.studies.plan import Method, Run, cache_command, score_command, train_command
from train.checkpoint import PARTS, complete_steps
from utils.errors import InputError
from utils.files import write_text

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # besides SIGINT, which Python itself turns into KeyboardInterrupt


class RunFailed(InputError):
    """A script of a run ended with an error; the message says where its output is."""


def is_done(run: Run) -> bool:
    """Whether the run was trained and scored with this config. Study and repository may have moved since."""
    try:
        return run.results.exists() and json.loads(_plan_file(run).read_bytes()) == _plan(run)
    except (FileNotFoundError, ValueError):
        return False


def _plan_file(run: Run) -> Path:
    """The file that is written when the run is trained and scored."""
    return run.folder / "plan.json"


def _plan(run: Run) -> dict[str, Any]:
    """The config of the run, without the places of study and repository."""
    text = json.dumps(run.config())
    for path, name in ((run.method.preset.parent.parent, "study"), (ROOT, "repository")):
        text = text.replace(json.dumps(f"{path}/")[1:-1], f"<{name}>/")
    return json.loads(text)


def _checkpoint(run: Run, step: int) -> Path:
    return run.folder / f"{step}{PARTS[0]}"


class Scripts:
    """Runs scripts, their output appended to a file, and ends all that still run if the study is stopped.

    jobs: how many run at once. They share the CPU threads, unless OMP_NUM_THREADS is set. If there are several GPUs,
    each script has one of them.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self._gpus: SimpleQueue[str] = SimpleQueue()  # of which a script takes one and puts it back
        gpus = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        gpus = gpus if len(gpus) > 1 else list(map(str, range(torch.cuda.device_count())))
        for job in range(jobs):
            self._gpus.put(gpus[job % len(gpus)] if len(gpus) > 1 else "")
        self._running: set[subprocess.Popen] = set()
        self._lock, self._stopped = threading.Lock(), False

    def run(self, command: Sequence[str], console: Path, alone: bool = False) -> None:
        """Run a script to its end. alone: with all CPU threads.

        Raises RunFailed if it fails, KeyboardInterrupt if the study was stopped.
        """
        threads = max(1, (os.cpu_count() or 1) // (1 if alone else self.jobs))
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        console.parent.mkdir(parents=True, exist_ok=True)
        gpu = self._gpus.get()
        try:
            self._run(command, console, {**environment, **({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})})
        finally:
            self._gpus.put(gpu)

    def _run(self, command: Sequence[str], console: Path, environment: Mapping[str, str]) -> None:
        with console.open("ab") as output:
            with self._lock:
                if self._stopped:
                    raise KeyboardInterrupt
                process = subprocess.Popen(
                    command, stdout=output, stderr=output, stdin=subprocess.DEVNULL, env=environment,
                    # If this process is killed, the script gets SIGTERM, saves a checkpoint and ends.
                    preexec_fn=_end_with_parent,
                )  # fmt: skip
                self._running.add(process)
            code = process.wait()
            with self._lock:
                self._running.discard(process)
                if self._stopped:
                    raise KeyboardInterrupt
        if code:
            raise RunFailed(f"{_last_line(console)} (exit code {code}; output: {console})")

    def stop(self) -> None:
        """End all scripts. Training saves a checkpoint first."""
        with self._lock:
            self._stopped = True
            for process in self._running:
                process.terminate()


def _end_with_parent() -> None:
    torch.multiprocessing._prctl_pr_set_pdeathsig(signal.SIGTERM)


def _last_line(console: Path) -> str:
    """The last line that a script printed, without progress bars before it."""
    lines = re.split(r"[\r\n]+", console.read_text(encoding="utf-8", errors="replace").strip())
    return lines[-1] if lines[-1] else "no output"


def run_all(runs: Sequence[Run], scripts: Scripts, finished: Callable[[Run, str | None], None]) -> None:
    """Train and score `runs`, at most `scripts.jobs` at once. A run that fails does not stop the others.

    finished: called after each run, with None or the reason for which it failed. Raises KeyboardInterrupt after a
    signal, when all scripts have ended.
    """
    with ThreadPoolExecutor(scripts.jobs) as pool, _stopping(scripts):
        failures = _cache_teachers({run.method for run in runs}, scripts)
        futures: dict[Future, Run] = {
            pool.submit(_train_and_score, run, scripts, failures.get(run.method.embeddings)): run for run in runs
        }
        try:
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    run, error = futures.pop(future), future.exception()
                    if error is not None and not isinstance(error, InputError | OSError):
                        raise error
                    finished(run, None if error is None else str(error))
        except BaseException:
            scripts.stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _stopping(scripts: Scripts) -> Iterator[None]:
    """In this block, STOP_SIGNALS raise KeyboardInterrupt, as SIGINT does."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    previous = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cache_teachers(methods: set[Method], scripts: Scripts) -> dict[str, str]:
    """Compute the embeddings of each teacher once. Returns the reasons for which it failed, by file."""
    failures = {}
    by_file = {method.embeddings: method for method in methods if method.embeddings}
    for file, method in by_file.items():
        try:
            scripts.run(cache_command(method), Path(file).with_suffix(".log"), alone=True)
        except RunFailed as error:
            failures[file] = f"the teacher's embeddings: {error}"
    return failures


def _train_and_score(run: Run, scripts: Scripts, failure: str | None) -> None:
    if failure:
        raise RunFailed(failure)
    _plan_file(run).unlink(missing_ok=True)
    scripts.run(train_command(run), run.console)
    scripts.run(score_command(run, _checkpoint(run, complete_steps(run.folder)[-1])), run.console)
    write_text(_plan_file(run), json.dumps(_plan(run)))
