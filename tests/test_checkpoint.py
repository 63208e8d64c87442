"""Checkpoints: they load as they were saved, need all their files, and pruning keeps the newest ones."""

import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from train.checkpoint import PARTS, SUMS, Checkpoint, CheckpointError, complete_steps, load, prune, remove_after, save


def checkpoint(step):
    return Checkpoint({"weight": torch.full((2,), float(step))}, {"kernel": torch.ones(3, 4)}, {"step": step})


def test_a_checkpoint_loads_as_it_was_saved(tmp_path):
    assert save(tmp_path, 40, checkpoint(40)) == tmp_path / "40backbone.pth"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(f"40{part}" for part in (*PARTS, SUMS))
    loaded = load(tmp_path, 40)
    assert torch.equal(loaded.backbone["weight"], torch.tensor([40.0, 40.0]))
    assert torch.equal(loaded.header["kernel"], torch.ones(3, 4))
    assert loaded.state == {"step": 40}


def test_a_checkpoint_is_complete_only_with_all_its_files(tmp_path):
    for step in (100, 20, 3):
        save(tmp_path, step, checkpoint(step))
    assert complete_steps(tmp_path) == [3, 20, 100]
    for part, step in zip(PARTS, (100, 20, 3), strict=True):
        (tmp_path / f"{step}{part}").rename(tmp_path / f"{step}{part}.bak")
        assert step not in complete_steps(tmp_path)
    (tmp_path / "xstate.pth").write_bytes(b"")
    assert complete_steps(tmp_path) == []
    assert complete_steps(tmp_path / "nowhere") == []


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_pruning_keeps_the_newest_checkpoints(tmp_path, keep):
    for step in (5, 40, 100):
        save(tmp_path, step, checkpoint(step))
    (tmp_path / "7backbone.pth").write_bytes(b"a student without a state file")
    (tmp_path / "log.csv").write_bytes(b"")
    prune(tmp_path, keep)
    kept = [5, 40, 100][-keep:]
    assert complete_steps(tmp_path) == kept
    names = {f"{step}{part}" for step in kept for part in (*PARTS, SUMS)} | {"7backbone.pth", "log.csv"}
    assert {path.name for path in tmp_path.iterdir()} == names


def test_pruning_spares_protected_checkpoints(tmp_path):
    for step in (5, 40, 100, 200):
        save(tmp_path, step, checkpoint(step))
    prune(tmp_path, 1, {40, 7})
    assert complete_steps(tmp_path) == [40, 200]


def test_the_error_lists_the_steps_that_have_a_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 7; available steps: none"):
        load(tmp_path, 7)
    for step in (5, 40):
        save(tmp_path, step, checkpoint(step))
    (tmp_path / "50backbone.pth").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"no complete checkpoint of step 50; available steps: 5, 40") as error:
        load(tmp_path, 50)
    assert str(tmp_path) in str(error.value)


def test_all_checkpoints_after_a_step_are_removed_and_no_others(tmp_path):
    for step in (4, 5, 6, 40):
        save(tmp_path, step, checkpoint(step))
    (tmp_path / "7backbone.pth").write_bytes(b"a student without a state file")
    remove_after(tmp_path, 5)
    assert {path.name for path in tmp_path.iterdir()} == {f"{step}{part}" for step in (4, 5) for part in (*PARTS, SUMS)}


MEMORY = """
import sys
from benchmarks.memory import peak_bytes, reset_peak
from config import load_config
from heads import build_head
from train.checkpoint import Checkpoint
from train.saver import Saver
def build(num_classes):
    return build_head(load_config(overrides=["dataset=custom", f"num_classes={num_classes}", "embedding_size=64"]))
build(100)  # loads code, which counts as memory as well
reset_peak()
before = peak_bytes()
head = build(1_000_000)
built = peak_bytes() - before
reset_peak()
before = peak_bytes()
saver = Saver(sys.argv[1], 1, print)
saver.save(1, Checkpoint({}, head.header(), {}))
saver.finish()
print((built / head.centers.nbytes), (peak_bytes() - before) / head.centers.nbytes)
"""


def test_centers_are_built_without_a_copy_and_saved_with_one(tmp_path):
    """The one copy is written while training continues. Centers of two million classes take 4 GB."""
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    built, saved = map(float, done.stdout.split()[-2:])
    assert built < 1.2 and saved < 1.2
    kernel = torch.load(tmp_path / "1header.pth", weights_only=True)["kernel"]
    assert kernel.shape == (64, 1_000_000) and (tmp_path / "1header.pth").stat().st_size < 1.01 * kernel.nbytes
