"""Runs whose ranks are killed at random moments, one or all, resume bit-equal to a run that was never interrupted."""

import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO

import pytest
import torch
from conftest import LONG, ROOT, run_script, size
from runs import assert_same_checkpoint, metrics, train

TRAIN = "train/train_AdaDistill.py"
STEPS = 60
LENGTH = ["num_epoch=10", "checkpoint_every=4", "keep_checkpoints=3", "val_eval_every_n_epoch=3"]
RANKS = {1: ["batch_size=8"], 2: ["batch_size=4"]}


@pytest.fixture(scope="module")
def untouched(small_run, tmp_path_factory):
    """untouched(ranks) -> the output of a run that is never interrupted."""
    outputs: dict[int, Path] = {}

    def run(ranks: int) -> Path:
        if ranks not in outputs:
            outputs[ranks] = tmp_path_factory.mktemp(f"untouched{ranks}")
            train(TRAIN, [*small_run, *LENGTH, *RANKS[ranks]], outputs[ranks], ranks=ranks if ranks > 1 else 0)
        return outputs[ranks]

    return run


def start(settings: list[str], output: Path, ranks: int, *launcher: str, into: IO | None = None) -> subprocess.Popen:
    """Start a run in a new process session. By default it prints to a file beside its output."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher]
    script = [str(ROOT / TRAIN), *settings, *LENGTH, *RANKS[ranks], f"output={output}", "resume=auto"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *script]
    with open(output.with_suffix(".txt"), "ab") as words:
        return subprocess.Popen(command, stdout=into or words, stderr=subprocess.STDOUT, start_new_session=True)


def descendants(process: int) -> list[int]:
    """The child processes of a process, their children, and so on."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rsplit(") ", 1)[1].split()[1])
        except (OSError, IndexError):
            continue
        if parent == process:
            found += [int(folder.name), *descendants(int(folder.name))]
    return found


def ranks_of(torchrun: int) -> list[int]:
    """The processes of the ranks that torchrun started."""
    own = []
    for pid in descendants(torchrun):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            own += [pid] if parent == torchrun and TRAIN in Path(f"/proc/{pid}/cmdline").read_text() else []
        except OSError:
            continue
    return own


def send(number: int, processes: list[int]) -> None:
    for process in processes:
        try:
            os.kill(process, number)
        except ProcessLookupError:
            continue


def wait_for_step(process: subprocess.Popen, output: Path, seconds: float) -> None:
    """Wait until the run has trained one more step, or has ended, or `seconds` have passed."""
    log = output / "metrics.jsonl"
    before, deadline = log.stat().st_mtime_ns if log.exists() else 0, time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        if log.exists() and log.stat().st_mtime_ns != before and log.stat().st_size:
            return
        time.sleep(0.02)


def interrupt(process: subprocess.Popen, output: Path, ranks: int, chance: random.Random) -> bool:
    """Send a signal to one rank or all, at a random moment of start or training. False if the run had ended already."""
    if chance.random() < 0.2:
        time.sleep(chance.uniform(0, 5))
    else:
        wait_for_step(process, output, 60)
        time.sleep(chance.uniform(0, 1.5))
    if process.poll() is not None:
        return False
    number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    victims = ranks_of(process.pid)
    if ranks > 1 and victims and chance.random() < 0.5:
        send(number, [chance.choice(victims)])
    elif number == signal.SIGKILL:
        send(number, [process.pid, *descendants(process.pid)])
    else:
        send(number, [process.pid])
    process.wait(timeout=120)
    return True


def assert_as_untouched(output: Path, reference: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert_same_checkpoint(reference, output, STEPS)
    assert metrics(output) == metrics(reference)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, STEPS + 1))


@pytest.mark.timeout(3600 if LONG else 600)
@pytest.mark.parametrize("ranks", RANKS if LONG else [1])
def test_runs_killed_at_random_moments_resume_bit_equal(small_run, untouched, tmp_path, tried, ranks):
    wanted, hits, survived, rounds = size(2, 25), 0, 0, 0
    chance = random.Random(ranks)
    reference = untouched(ranks)
    while hits < wanted:
        rounds, before = rounds + 1, hits
        output = tmp_path / f"run{rounds}"
        process = None
        while hits < wanted:
            process = start([*small_run, f"num_workers={chance.choice([0, 1, 2])}"], output, ranks)
            if not interrupt(process, output, ranks, chance):
                break
            hits += 1
        if process.poll() != 0:
            process = start(small_run, output, ranks)
        try:
            assert process.wait(timeout=300) == 0, output.with_suffix(".txt").read_text()[-3000:]
            assert_as_untouched(output, reference)
            survived += hits - before
        except AssertionError as error:
            print(f"round {rounds}: {error}")
    tried(f"hits of a run of {ranks} rank(s), resumed to the same bits", hits, survived)


@pytest.mark.timeout(1200)
def test_torchrun_restarts_a_run_that_lost_a_rank(small_run, untouched, tmp_path, tried):
    times = size(1, 5)
    for number in range(times):
        output = tmp_path / f"run{number}"
        process = start([*small_run, "rank_timeout=60"], output, 2, "--max-restarts=3")
        wait_for_step(process, output, 60)
        time.sleep(random.Random(number).uniform(0, 1))
        send(signal.SIGKILL, ranks_of(process.pid)[-1:])
        assert process.wait(timeout=300) == 0, output.with_suffix(".txt").read_text()[-3000:]
        assert_as_untouched(output, untouched(2))
        words = output.with_suffix(".txt").read_text()
        assert "did not find each other" not in words and "connectFullMesh" not in words
        assert re.search(r"error \(rank [01]\): rank [01] \(process \d+ on .*\) died", words), words
    tried("ranks killed under torchrun --max-restarts", times, times)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)] if LONG else [(2, 1)])
def test_a_run_resumes_with_another_number_of_ranks(small_run, tmp_path, tried, first, then):
    """Global batches, centers and statistics are the same; with sync_bn the weights are, up to the order of sums."""
    shared = [*small_run, "sync_bn=True", "dtype=float32", "val_eval_every_n_epoch=0"]
    train(TRAIN, shared, tmp_path / "whole", "max_steps=4")
    for ranks, steps in ((first, 2), (then, 4)):
        more = [*RANKS[ranks], f"max_steps={steps}", "resume=auto"]
        train(TRAIN, shared, tmp_path / "parts", *more, ranks=ranks if ranks > 1 else 0)
    count = close = 0
    for part in ("header", "backbone"):
        one, two = (torch.load(tmp_path / name / f"4{part}.pth", weights_only=True) for name in ("whole", "parts"))
        count += len(one)
        close += sum(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)
    for one, two in zip(metrics(tmp_path / "whole"), metrics(tmp_path / "parts"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    tried(f"tensors equal after going on from {first} to {then} ranks", count, close)


def test_a_worker_that_is_killed_ends_the_run_with_a_clear_error(small_run, tmp_path):
    output = tmp_path / "run"
    process = start([*small_run, "num_workers=1"], output, 1)
    wait_for_step(process, output, 60)
    send(signal.SIGKILL, descendants(process.pid))
    assert process.wait(timeout=60) == 2
    words = output.with_suffix(".txt").read_text()
    assert re.search(r"error: DataLoader worker .*lower num_workers", words) and "Traceback" not in words


def test_a_second_run_in_the_same_output_is_refused_while_the_first_is_training(small_run, tmp_path):
    output = tmp_path / "run"
    process = start(small_run, output, 1)
    wait_for_step(process, output, 60)
    done = run_script(TRAIN, *small_run, f"output={output}", "resume=auto")
    send(signal.SIGKILL, [process.pid, *descendants(process.pid)])
    process.wait()
    assert done.returncode == 2 and "another run is writing there" in done.stderr


def test_a_rank_that_finds_no_other_rank_ends(small_run, tmp_path, monkeypatch):
    """Joining has a limit of its own; otherwise the rank would wait for rank_timeout, half an hour."""
    import socket

    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    done = run_script(TRAIN, *small_run, f"output={tmp_path}", "rank_timeout=3")
    assert done.returncode == 1 and "error (rank 0): the ranks did not find each other within 3 s" in done.stderr
