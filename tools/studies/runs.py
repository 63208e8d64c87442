"""Train and score the runs of a study, one after another or several at once."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from queue import SimpleQueue

import torch

from config.rules import EVALUATION
from tools.studies.plan import Run, cache_command, score_command, teacher_of, train_command
from tools.studies.records import (
    CSV,
    TRAINING,
    Settings,
    changed,
    has_files,
    plan_file,
    portable,
    recorded_settings,
    settings,
)
from train.checkpoint import PARTS, complete_steps
from utils.errors import InputError, describe_error
from utils.files import lock_folder, write_text

STOP_SIGNALS = (signal.SIGTERM, signal.SIGHUP)  # besides SIGINT, which Python itself turns into KeyboardInterrupt
LONGEST_SAVE = 60  # seconds that a script may need to end after a signal


class RunFailed(InputError):
    """A script of a run ended with an error; the message says where its output is."""


def is_done(run: Run) -> bool:
    """Whether the run was trained and scored with this config, by its files or by the records of the study. Study and
    repository may have moved since."""
    old = _started_with(run) if has_files(run) else recorded_settings(run)
    return old is not None and not changed(old, run, [*TRAINING, *EVALUATION])


def require_same_settings(runs: Sequence[Run]) -> None:
    """Raise InputError if a run was started with other settings of the training, or if its files are gone and the
    records of the study have its results with other settings."""
    for run in runs:
        if plan_file(run).exists():
            old, keys = _started_with(run), TRAINING
            where = f"{run.folder}: was started"
        else:
            old, keys = recorded_settings(run), [*TRAINING, *EVALUATION]
            where = f"{run.method.study / CSV}: has the results of {run.name}"
        if old is not None and (different := changed(old, run, keys)):
            raise InputError(
                f"{where} with other settings: {'; '.join(different)}; use another --output, or remove this folder and "
                f"the row of this run in {CSV}"
            )


def _started_with(run: Run) -> Settings:
    """The settings with which a run was started."""
    return portable(plan_file(run).read_text(encoding="utf-8"), run.method.study)


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
    with ThreadPoolExecutor(scripts.jobs) as pool, _stopping():
        try:
            failures = _cache_teachers(runs, scripts)
            futures: dict[Future, Run] = {
                pool.submit(_train_and_score, run, scripts, failures.get(teacher_of(run.method))): run for run in runs
            }
            while futures:
                for future in wait(futures, return_when=FIRST_COMPLETED).done:
                    run, error = futures.pop(future), future.exception()
                    if error is not None and not isinstance(error, InputError | OSError):
                        raise error
                    finished(run, None if error is None else describe_error(error))
        except BaseException:
            scripts.stop()
            pool.shutdown(cancel_futures=True)
            raise


@contextmanager
def _stopping() -> Iterator[None]:
    """In this block, STOP_SIGNALS raise KeyboardInterrupt, as SIGINT does, unless they are ignored (by nohup)."""

    def stop(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    taken = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    previous = {number: signal.signal(number, stop) for number in taken}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _cache_teachers(runs: Sequence[Run], scripts: Scripts) -> dict[str, str]:
    """Compute the embeddings of each teacher once. Returns the reasons for which it failed, by `teacher_of`."""
    failures = {}
    for teacher, method in {teacher_of(run.method): run.method for run in reversed(runs)}.items():
        if teacher:
            console = method.study / "teacher" / f"{Path(method.embeddings[0]).stem}.log"
            try:
                scripts.run(cache_command(method), console, alone=True)
            except (RunFailed, OSError) as error:
                failures[teacher] = f"the teacher's embeddings: {describe_error(error)}"
    return failures


def _train_and_score(run: Run, scripts: Scripts, failure: str | None) -> None:
    if failure:
        raise RunFailed(failure)
    for file in (run.results, run.results.with_suffix(".npz")):
        file.unlink(missing_ok=True)  # they may be of another evaluation
    run.folder.mkdir(parents=True, exist_ok=True)
    write_text(plan_file(run), json.dumps(settings(run)))
    _wait_for_lock(run.folder)
    scripts.run(train_command(run), run.console)
    scripts.run(score_command(run, _checkpoint(run, complete_steps(run.folder)[-1])), run.console)


def _wait_for_lock(folder: Path) -> None:
    """Wait while another process trains there, such as a script of a killed study that still saves a checkpoint."""
    end = time.monotonic() + LONGEST_SAVE
    while time.monotonic() < end:
        try:
            lock_folder(folder).close()
            return
        except OSError:
            time.sleep(0.5)
