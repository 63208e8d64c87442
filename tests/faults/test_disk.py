"""Checkpoints that are incomplete, truncated or changed, and disks that are full for a while."""

import os
import random
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import LONG, ROOT, run_script, size
from runs import assert_same_checkpoint, metrics, train
from test_interruption import start

from train import checkpoint
from train.checkpoint import (
    PARTS,
    SUMS,
    Checkpoint,
    CheckpointError,
    complete_steps,
    prune,
    save,
    step_to_resume,
)
from train.saver import Saver

TRAIN = "train/train_AdaDistill.py"


def content(step: int) -> Checkpoint:
    weight = torch.randn(50, generator=torch.Generator().manual_seed(step))
    return Checkpoint({"weight": weight}, {"kernel": weight}, {"step": step})


def damage_file(path: Path, rng: random.Random) -> None:
    """Cut the file short, or flip one bit of it."""
    data = bytearray(path.read_bytes())
    if rng.random() < 0.5:
        del data[rng.randrange(len(data)) :]
    else:
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    path.write_bytes(data)


def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(tmp_path, tried):
    rng = random.Random(0)
    times, found = size(100, 5000), 0
    save(tmp_path, 5, content(5))
    for number in range(times):
        save(tmp_path, 10, content(10))
        part = (*PARTS, SUMS)[number % 4]
        damage_file(tmp_path / f"10{part}", rng)
        step, problems = step_to_resume(tmp_path, True, 0)
        found += step == 5 and len(problems) == 1 and (f"10{part}: broken" in problems[0] or part == SUMS)
    tried("checkpoints that were cut short or had a bit flipped: detected", times, found)
    damage_file(tmp_path / f"5{PARTS[0]}", rng)
    with pytest.raises(CheckpointError, match=r"no checkpoint is intact: .*; .*5backbone"):
        step_to_resume(tmp_path, True, 0)


def test_a_run_names_a_broken_checkpoint_and_resumes_from_the_previous_one(small_run, tmp_path):
    settings = [*small_run, "checkpoint_every=2", "val_eval_every_n_epoch=0"]
    train(TRAIN, settings, tmp_path / "uninterrupted", "max_steps=8")
    train(TRAIN, settings, tmp_path / "run", "max_steps=4")
    damage_file(tmp_path / "run" / "4header.pth", random.Random(0))
    train(TRAIN, settings, tmp_path / "run", "max_steps=8", "resume=auto")
    log = (tmp_path / "run" / "training.log").read_text()
    assert "NOT RESUMED" in log and "4header.pth: broken" in log and "resuming from step 2" in log
    assert_same_checkpoint(tmp_path / "uninterrupted", tmp_path / "run", 8)


def test_temporary_files_of_a_killed_run_are_removed(small_run, tmp_path):
    (tmp_path / ".12header.pth.999.part").write_bytes(b"half")
    (tmp_path / ".mine.part").write_bytes(b"")
    train(TRAIN, small_run, tmp_path, "max_steps=1")
    assert not (tmp_path / ".12header.pth.999.part").exists() and (tmp_path / ".mine.part").exists()


@pytest.mark.parametrize("keep", [1, 2])
def test_the_last_intact_checkpoint_is_never_removed(tmp_path, keep):
    for step in (1, 2, 3, 4):
        save(tmp_path, step, content(step))
    for step in (3, 4):
        os.truncate(tmp_path / f"{step}header.pth", 9)
    prune(tmp_path, keep)
    assert complete_steps(tmp_path) == [2, 3, 4] if keep == 1 else [1, 2, 3, 4]


def test_an_incomplete_checkpoint_is_named(tmp_path):
    for step in (1, 2):
        save(tmp_path, step, content(step))
    (tmp_path / f"2{SUMS}").unlink()  # as after a kill before the last file; the other three are complete
    assert step_to_resume(tmp_path, True, 0) == (2, [])
    (tmp_path / "2state.pth").unlink()
    step, (problem,) = step_to_resume(tmp_path, True, 0)
    assert step == 1 and "step 2 lacks state.pth" in problem


def test_an_old_checkpoint_that_cannot_be_removed_is_logged_and_the_new_one_is_saved(tmp_path):
    save(tmp_path, 1, content(1))
    (tmp_path / "1state.pth").unlink()
    (tmp_path / "1state.pth" / "full").mkdir(parents=True)
    logged: list[str] = []
    saver = Saver(tmp_path, 1, logged.append)
    saver.save(2, content(2))
    saver.finish()
    assert saver.unsaved is None and logged[0].startswith("saved ") and logged[1].startswith("NOT REMOVED")


def test_tensorboard_scalars_missed_on_a_full_disk_are_written_later(tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    from train.run_log import RunLog

    log, flush, full = RunLog(tmp_path, 4), SummaryWriter.flush, [False, False, False, True, False, False]
    log.open(0)

    def flushed(board: SummaryWriter) -> None:
        if full.pop(0):
            raise OSError(28, "No space left on device")
        flush(board)

    monkeypatch.setattr(SummaryWriter, "flush", flushed)
    for step, kind in ((1, "training"), (2, "training"), (3, "training"), (3, "evaluation"), (4, "training")):
        log.metrics(step, kind, {"loss": float(step)})
    log.close()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("evaluation/loss")] == [3]


def test_saving_waits_only_for_the_copy_to_host_memory(tmp_path, monkeypatch):
    may_write = threading.Event()
    monkeypatch.setattr("train.saver.save", lambda *arguments: may_write.wait(60) and save(*arguments))
    logged: list[str] = []
    saver, training = Saver(tmp_path, 0, logged.append), content(7)
    saver.save(7, training)
    assert complete_steps(tmp_path) == [] and not logged  # training continues
    training.backbone["weight"].zero_()
    may_write.set()
    saver.finish()
    assert torch.equal(checkpoint.load(tmp_path, 7).backbone["weight"], content(7).backbone["weight"])
    assert logged == [f"saved {tmp_path / '7backbone.pth'}"]


Hook = Callable[[subprocess.Popen, Path], None]


def _limit_of_file_size(process: subprocess.Popen, output: Path) -> None:
    """Limit the run's files to one kilobyte. Its writes fail as on a full disk; other processes are not affected."""
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1024, resource.RLIM_INFINITY))


def _no_limit(process: subprocess.Popen, output: Path) -> None:
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def _filler(process: subprocess.Popen, output: Path) -> None:
    """Fill the rest of the disk."""
    with open(output.parent / "filler", "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            pass


def _no_filler(process: subprocess.Popen, output: Path) -> None:
    (output.parent / "filler").unlink()


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 16 MB; skips the test where mounting one is not allowed."""
    place = tmp_path / "disk"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("mounting a small file system is not allowed here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


def full_for_a_while(small_run: list[str], output: Path, printed: Path, fill: Hook, empty: Hook) -> None:
    """Run with a disk that is full from the first checkpoint until two failures were printed.

    The output of the run is piped to the file `printed`, which is not affected by the limit.
    """
    with open(printed, "wb") as file, subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=file) as cat:
        process = start(small_run, output, 1, into=cat.stdin)
        cat.stdin.close()
        deadline = time.monotonic() + 100

        def wait_until(done: Callable[[], bool]) -> None:
            while not done():
                assert time.monotonic() < deadline and process.poll() is None, printed.read_text()
                time.sleep(0.01)

        wait_until((output / f"4{SUMS}").exists)
        fill(process, output)
        wait_until(lambda: printed.read_text().count("NOT SAVED") >= 2)
        assert checkpoint.damage(output, complete_steps(output)[-1]) is None
        empty(process, output)
        assert process.wait(timeout=100) == 0, printed.read_text()


@pytest.mark.parametrize("kind", ["files may not grow", *(["the disk is full"] if LONG else [])])
def test_a_run_survives_a_full_disk_and_ends_bit_equal(small_run, tmp_path, request, tried, kind):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from test_interruption import LENGTH, RANKS, STEPS

    if kind == "the disk is full":
        place, hooks = request.getfixturevalue("small_disk"), (_filler, _no_filler)
    else:
        place, hooks = tmp_path, (_limit_of_file_size, _no_limit)
    full_for_a_while(small_run, place / "run", tmp_path / "printed", *hooks)
    train(TRAIN, [*small_run, *LENGTH, *RANKS[1]], tmp_path / "uninterrupted")
    assert_same_checkpoint(tmp_path / "uninterrupted", place / "run", STEPS)
    assert metrics(place / "run") == metrics(tmp_path / "uninterrupted")
    events = EventAccumulator(str(place / "run" / "tensorboard"), size_guidance={"scalars": 0}).Reload()
    assert [event.step for event in events.Scalars("training/loss")] == list(range(1, STEPS + 1))
    tried(f"runs in which for a while {kind}", 1, 1)


def test_a_last_checkpoint_that_is_not_saved_is_an_error(small_run, tmp_path):
    (tmp_path / "2header.pth").mkdir(parents=True)  # so renaming a file to this name fails, as without permission
    done = run_script(TRAIN, *small_run, f"output={tmp_path}", "max_steps=2")
    assert done.returncode == 2 and "the checkpoint of step 2 is not saved" in done.stderr, done.stderr
    assert "NOT SAVED: the checkpoint of step 2" in done.stdout


def test_a_full_disk_for_standard_output_does_not_stop_training(small_run, tmp_path):
    command = [sys.executable, str(ROOT / TRAIN), *small_run, f"output={tmp_path}", "max_steps=2"]
    with open("/dev/full", "wb") as full:
        subprocess.run(command, stdout=full, stderr=full, timeout=100)
    assert complete_steps(tmp_path) == [2] and "done at step 2" in (tmp_path / "training.log").read_text()


def test_weights_that_changed_since_they_were_saved_are_not_scored(small_run, tmp_path):
    train(TRAIN, small_run, tmp_path, "max_steps=2")
    damage_file(tmp_path / "2backbone.pth", random.Random(3))
    checkpoint = tmp_path / "2backbone.pth"
    done = run_script("eval/run_full_eval.py", "--config", tmp_path / "config.py", "--checkpoint", checkpoint)
    assert done.returncode == 2 and "2backbone.pth: broken: cut short or changed" in done.stderr
