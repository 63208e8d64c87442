"""Bad steps are undone on all ranks and counted, and too many of them end the run; lost ranks are named."""

import re
import time
from pathlib import Path

import pytest
import torch
from conftest import LONG, run_script
from runs import metrics, tensors

FAULTY = "tests/faults/faulty_training.py"
SHORT = ["val_eval_every_n_epoch=0", "checkpoint_every=1", "dtype=float32"]


@pytest.fixture
def faulty(small_run, tmp_path, monkeypatch):
    """faulty(fault, *settings, ranks): run with a fault, and return the finished process."""

    def run(fault: str, *settings: str, ranks: int = 0):
        monkeypatch.setenv("FAULT", fault)
        return run_script(FAULTY, *small_run, *SHORT, f"output={tmp_path}", *settings, ranks=ranks)

    return run


def state(folder: Path, step: int) -> dict[str, torch.Tensor]:
    """Return weights, BatchNorm buffers, centers, norm statistics and momentum after a step."""
    parts = [torch.load(folder / f"{step}{part}.pth", weights_only=True) for part in ("backbone", "header", "state")]
    return dict(tensors({"backbone": parts[0], "header": parts[1], "momentum": parts[2]["optimizer"]["state"]}))


@pytest.mark.parametrize(
    ("fault", "ranks"),
    [("nan_loss", 0), ("nan_gradient", 0), ("nan_gradient", 2), *([("nan_loss", 2)] if LONG else [])],
)
def test_a_step_that_is_not_finite_on_one_rank_changes_nothing(faulty, tmp_path, tried, fault, ranks):
    more = ["batch_size=2", "accumulate_steps=2"] if ranks else ["centers=ema"]
    passes = "8:8:1" if ranks else "4:5:0"  # the second pass of step 4; or steps 4 and 5
    done = faulty(f"{fault}:{passes}", *more, "max_steps=8", "max_bad_steps=2", ranks=ranks)
    assert done.returncode == 0, done.stderr
    before, after, later = state(tmp_path, 3), state(tmp_path, 4 if ranks else 5), state(tmp_path, 6)
    same = sum(torch.equal(value, after[name]) for name, value in before.items())
    tried(f"tensors unchanged by steps with {fault}, {max(1, ranks)} rank(s)", len(before), same)
    assert not torch.equal(after[".header.kernel"], later[".header.kernel"])
    assert all(value.isfinite().all() for value in later.values())
    bad = 1 if ranks else 2
    assert [line["bad_steps"] for line in metrics(tmp_path)] == [0, 0, 0, 1, bad, bad, bad, bad]


def test_too_many_bad_steps_end_the_run_with_the_last_good_step_and_the_usual_causes(faulty, tmp_path):
    done = faulty("nan_loss:4:99:0", "max_bad_steps=3", "num_epoch=9")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    error = re.search(r"error: step (\d+): .*", done.stderr)
    assert 7 <= int(error[1]) <= 9
    for part in ("max_bad_steps = 3 in a row", "the last good one, 3, had loss", "learning rate", "NaN loss"):
        assert part in error[0]
    assert (tmp_path / f"{error[1]}sha256.txt").exists()  # the checkpoint, with the weights of step 3


def test_two_ranks_end_at_the_same_step(faulty, tmp_path):
    done = faulty("nan_gradient:2:99:1", "max_bad_steps=2", "num_epoch=9", "batch_size=4", ranks=2)
    steps = re.findall(r"error \(rank \d\): step (\d+): ", done.stderr)
    assert len(steps) == 2 and len(set(steps)) == 1


def test_float16_lowers_its_scale_and_recovers(faulty, tmp_path, tried):
    done = faulty("nan_gradient:3:6:0", "dtype=float16", "max_steps=12")
    assert done.returncode == 0, done.stderr
    lines = metrics(tmp_path)
    assert lines[5]["loss_scale"] == lines[1]["loss_scale"] / 16
    good = sum(lines[step]["bad_steps"] == lines[5]["bad_steps"] for step in range(6, 12))
    tried("float16 steps that continued after four overflows", 6, good)


LOST = {"die": "died, or was stopped", "stop": "died, or was stopped", "hang": "hangs", "hang_with_delay": "hangs"}


@pytest.mark.parametrize("fault", LOST if LONG else ["hang_with_delay"])
def test_only_the_rank_that_dies_or_hangs_is_named_with_its_last_step(faulty, tried, fault):
    start = time.monotonic()
    done = faulty(f"{fault}:3:3:1", "batch_size=2", "rank_timeout=5", ranks=3)
    assert done.returncode != 0
    assert not re.search(r"rank [02] \(process", done.stderr), done.stderr
    named = rf"error \(rank [02]\): rank 1 \(process \d+ on .*\) {LOST[fault]}: last seen at step [23]"
    tried(f"ranks that name the lost rank (fault: {fault})", 2, len(re.findall(named, done.stderr)))
    assert time.monotonic() - start < 60, "the run ended long after the timeout"


@pytest.mark.parametrize("loss", ["AdaFace", "ArcFace"])
def test_a_teacher_that_is_not_finite_is_a_bad_step(faulty, tmp_path, loss):
    """With ArcFace the loss alone would stay finite, and the centers would stop moving unnoticed."""
    done = faulty("nan_teacher:3:3:0", f"loss={loss}", "max_steps=4")
    assert done.returncode == 0, done.stderr
    assert [line["bad_steps"] for line in metrics(tmp_path)] == [0, 0, 1, 1]
    before, after = state(tmp_path, 2), state(tmp_path, 3)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_run_that_ends_with_too_many_bad_steps_is_not_reported_as_done(faulty):
    done = faulty("nan_loss:3:4:0", "max_bad_steps=1", "max_steps=4")
    assert done.returncode == 2 and "the last good one, 2" in done.stderr
