"""Runs of which one rank or all ranks are killed at random moments resume bit-equal to an uninterrupted run."""

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
from runs import assert_same_checkpoint, descendants, heed_signals, metrics, send, train, wait_for_step

TRAIN = "train/train_AdaDistill.py"
STEPS = 60
LENGTH = ["num_epoch=10", "checkpoint_every=4", "keep_checkpoints=3", "val_eval_every_n_epoch=3"]
RANKS = {1: ["batch_size=8"], 2: ["batch_size=4"]}


@pytest.fixture(scope="module")
def uninterrupted(small_run, tmp_path_factory):
    """uninterrupted(ranks) -> the output of a run that is never interrupted."""
    outputs: dict[int, Path] = {}

    def run(ranks: int) -> Path:
        if ranks not in outputs:
            outputs[ranks] = tmp_path_factory.mktemp(f"uninterrupted{ranks}")
            train(TRAIN, [*small_run, *LENGTH, *RANKS[ranks]], outputs[ranks], ranks=ranks if ranks > 1 else 0)
        return outputs[ranks]

    return run


def start(settings: list[str], output: Path, ranks: int, *launcher: str, into: IO | None = None) -> subprocess.Popen:
    """Start a run in a new process session. By default it prints to a file beside its output."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", *launcher]
    script = [str(ROOT / TRAIN), *settings, *LENGTH, *RANKS[ranks], f"output={output}", "resume=auto"]
    command = [sys.executable, *(torchrun if ranks > 1 else []), *script]
    with open(output.with_suffix(".txt"), "ab") as printed:
        return subprocess.Popen(
            command, stdout=into or printed, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heed_signals
        )


def ranks_of(torchrun: int) -> list[int]:
    """Return the processes of the ranks that torchrun started."""
    ranks = []
    for pid in descendants(torchrun):
        try:
            parent = int(Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1].split()[1])
            ranks += [pid] if parent == torchrun and TRAIN in Path(f"/proc/{pid}/cmdline").read_text() else []
        except OSError:
            continue
    return ranks


def interrupt(process: subprocess.Popen, output: Path, ranks: int, rng: random.Random) -> bool:
    """Send a signal to one rank or all, at a random moment. Returns False if the run had already ended."""
    if rng.random() < 0.2:
        time.sleep(rng.uniform(0, 5))
    else:
        wait_for_step(process, output, 60)
        time.sleep(rng.uniform(0, 1.5))
    if process.poll() is not None:
        return False
    number = rng.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    victims = ranks_of(process.pid)
    if ranks > 1 and victims and rng.random() < 0.5:
        send(number, [rng.choice(victims)])
    elif number == signal.SIGKILL:
        send(number, [process.pid, *descendants(process.pid)])
    else:
        send(number, [process.pid])
    process.wait(timeout=120)
    return True


def assert_like_uninterrupted(output: Path, reference: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert_same_checkpoint(reference, output, STEPS)
    assert metrics(output) == metrics(reference)
    events = EventAccumulator(str(output / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, STEPS + 1))


@pytest.mark.timeout(3600 if LONG else 600)
@pytest.mark.parametrize("ranks", RANKS if LONG else [1])
def test_runs_killed_at_random_moments_resume_bit_equal(small_run, uninterrupted, tmp_path, tried, ranks):
    wanted, interruptions, survived, rounds = size(2, 25), 0, 0, 0
    rng = random.Random(ranks)
    reference = uninterrupted(ranks)
    while interruptions < wanted:
        rounds, before = rounds + 1, interruptions
        output = tmp_path / f"run{rounds}"
        process = None
        while interruptions < wanted:
            process = start([*small_run, f"num_workers={rng.choice([0, 1, 2])}"], output, ranks)
            if not interrupt(process, output, ranks, rng):
                break
            interruptions += 1
        if process.poll() != 0:
            process = start(small_run, output, ranks)
        try:
            assert process.wait(timeout=300) == 0, output.with_suffix(".txt").read_text()[-3000:]
            assert_like_uninterrupted(output, reference)
            survived += interruptions - before
        except AssertionError as error:
            print(f"round {rounds}: {error}")
    tried(f"interruptions of a run with {ranks} rank(s), resumed bit-equal", interruptions, survived)


@pytest.mark.timeout(1200)
def test_torchrun_restarts_a_run_that_lost_a_rank(small_run, uninterrupted, tmp_path, tried):
    times = size(1, 5)
    for number in range(times):
        output = tmp_path / f"run{number}"
        process = start([*small_run, "rank_timeout=60"], output, 2, "--max-restarts=3")
        wait_for_step(process, output, 60)
        time.sleep(random.Random(number).uniform(0, 1))
        send(signal.SIGKILL, ranks_of(process.pid)[-1:])
        assert process.wait(timeout=300) == 0, output.with_suffix(".txt").read_text()[-3000:]
        assert_like_uninterrupted(output, uninterrupted(2))
        printed = output.with_suffix(".txt").read_text()
        assert "did not find each other" not in printed and "connectFullMesh" not in printed
        assert re.search(r"error \(rank [01]\): rank [01] \(process \d+ on .*\) died", printed), printed
    tried("ranks killed under torchrun --max-restarts", times, times)


@pytest.mark.parametrize(("first", "then"), [(2, 1), (1, 2)] if LONG else [(2, 1)])
def test_a_run_resumes_with_another_number_of_ranks(small_run, tmp_path, tried, first, then):
    """With sync_bn, losses, centers, statistics and weights are the same, up to the order of floating-point sums."""
    shared = [*small_run, "sync_bn=True", "dtype=float32", "val_eval_every_n_epoch=0"]
    train(TRAIN, shared, tmp_path / "uninterrupted", "max_steps=4")
    for ranks, steps in ((first, 2), (then, 4)):
        more = [*RANKS[ranks], f"max_steps={steps}", "resume=auto"]
        train(TRAIN, shared, tmp_path / "parts", *more, ranks=ranks if ranks > 1 else 0)
    count = close = 0
    for part in ("header", "backbone"):
        one, two = (
            torch.load(tmp_path / name / f"4{part}.pth", weights_only=True) for name in ("uninterrupted", "parts")
        )
        count += len(one)
        close += sum(torch.allclose(one[name], two[name], rtol=1e-3, atol=1e-4) for name in one)
    for one, two in zip(metrics(tmp_path / "uninterrupted"), metrics(tmp_path / "parts"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)
    tried(f"tensors that are equal after a change from {first} to {then} rank(s)", count, close)


def test_a_worker_that_is_killed_ends_the_run_with_a_clear_error(small_run, tmp_path):
    output = tmp_path / "run"
    process = start([*small_run, "num_workers=1"], output, 1)
    wait_for_step(process, output, 60)
    send(signal.SIGKILL, descendants(process.pid))
    assert process.wait(timeout=60) == 2
    printed = output.with_suffix(".txt").read_text()
    assert (
        re.search(r"error: the worker process \d+ was killed by signal 9; .*lower num_workers", printed)
        and "Traceback" not in printed
    )


def test_a_second_run_in_the_same_output_is_refused_while_the_first_is_training(small_run, tmp_path):
    output = tmp_path / "run"
    process = start(small_run, output, 1)
    wait_for_step(process, output, 60)
    done = run_script(TRAIN, *small_run, f"output={output}", "resume=auto")
    send(signal.SIGKILL, [process.pid, *descendants(process.pid)])
    process.wait()
    assert done.returncode == 2 and "another run is writing there" in done.stderr


def test_a_rank_that_finds_no_other_rank_ends(small_run, tmp_path, monkeypatch):
    """Finding the other ranks has a time limit: 5 minutes, or rank_timeout if that is less."""
    import socket

    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    for name, value in (("RANK", 0), ("WORLD_SIZE", 2), ("MASTER_ADDR", "localhost"), ("MASTER_PORT", port)):
        monkeypatch.setenv(name, str(value))
    done = run_script(TRAIN, *small_run, f"output={tmp_path}", "rank_timeout=3")
    assert done.returncode == 1 and "error (rank 0): the ranks did not find each other within 3 s" in done.stderr
