"""Faults of runs whose centers are split over ranks: lost ranks, full disks and bad steps."""

import re

import pytest
import torch
from conftest import run_script
from runs import assert_same_checkpoint, metrics
from safetensors.torch import load_file

from train.checkpoint import complete_steps, damage

FAULTY = "tests/faults/faulty_training.py"
SETTINGS = ["val_eval_every_n_epoch=0", "checkpoint_every=1", "dtype=float32", "shard_centers=on", "max_steps=4"]


@pytest.fixture(scope="module")
def healthy(small_run, tmp_path_factory):
    """The output of an uninterrupted run on two ranks."""
    output = tmp_path_factory.mktemp("healthy")
    done = run_script("train/train_AdaDistill.py", *small_run, *SETTINGS, f"output={output}", ranks=2)
    assert done.returncode == 0, done.stderr
    return output


def same_centers(one, other, step: int) -> bool:
    files = ([load_file(path) for path in sorted((folder / f"{step}centers.dcp").iterdir())] for folder in (one, other))
    return all(torch.equal(a["centers"], b["centers"]) for a, b in zip(*files, strict=True))


def test_a_rank_that_dies_while_it_saves_is_named_and_the_run_resumes_bit_equal(
    small_run, healthy, tmp_path, monkeypatch, tried
):
    monkeypatch.setenv("FAULT", "die_saving:3:3:1")
    settings = [*small_run, *SETTINGS, f"output={tmp_path}"]
    done = run_script(FAULTY, *settings, "rank_timeout=10", ranks=2)
    assert done.returncode != 0 and re.search(r"rank 1 \(process \d+ on .*\) died", done.stderr), done.stderr
    assert complete_steps(tmp_path) == [1, 2] and damage(tmp_path, 2) is None
    assert list(tmp_path.glob(".*.part"))  # of the step that was being saved
    done = run_script("train/train_AdaDistill.py", *settings, "resume=auto", ranks=2)
    assert done.returncode == 0 and not list(tmp_path.glob(".*.part")), done.stderr
    assert_same_checkpoint(healthy, tmp_path, 4)
    tried("sharded runs that lost a rank while saving, resumed bit-equal", 1, int(same_centers(healthy, tmp_path, 4)))


def test_a_disk_that_is_full_on_one_rank_costs_only_that_checkpoint(small_run, healthy, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", "disk_full_saving:2:2:1")
    done = run_script(FAULTY, *small_run, *SETTINGS, f"output={tmp_path}", ranks=2)
    assert done.returncode == 0, done.stderr
    assert complete_steps(tmp_path) == [1, 3, 4] and same_centers(healthy, tmp_path, 4)
    (line,) = (line for line in (tmp_path / "training.log").read_text().splitlines() if "NOT SAVED" in line)
    assert "the checkpoint of step 2" in line and "rank 1" in line and "no space left" in line


def test_a_bad_step_changes_no_slice(small_run, tmp_path, monkeypatch):
    monkeypatch.setenv("FAULT", "nan_gradient:3:3:1")
    done = run_script(FAULTY, *small_run, *SETTINGS, f"output={tmp_path}", ranks=2)
    assert done.returncode == 0, done.stderr
    assert [line["bad_steps"] for line in metrics(tmp_path)] == [0, 0, 1, 1]
    slices = {}
    for step in (2, 3, 4):
        files = sorted((tmp_path / f"{step}centers.dcp").iterdir())
        slices[step] = torch.cat([load_file(path)["centers"] for path in files])
    assert torch.equal(slices[2], slices[3]) and not torch.equal(slices[3], slices[4])
