"""Training with centers that are split over ranks: like with whole ones, and resumed on any number of ranks."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import pytest
import torch
from conftest import run_script
from runs import SCRIPTS, metrics, tensors, train
from safetensors.torch import load_file

from train import checkpoint
from train.checkpoint import Checkpoint, Shards, add_header, complete_steps, damage, save
from train.saver import Saver

SHARDED = ["shard_centers=on", "val_targets=[]", "dtype=float32", "max_steps=4", "checkpoint_every=1"]


def settings_of(small_run: list[str], script: str, ranks: int) -> list[str]:
    """24 images per step on any number of ranks; each rank's BatchNorm statistics are those of all ranks."""
    more = ["sample_rate=0.7"] if script == SCRIPTS[1] else []
    return [*small_run, *SHARDED, f"batch_size={24 // ranks}", "sync_bn=True", "num_epoch=9", *more]


@pytest.fixture(scope="module", params=SCRIPTS)
def run(request, small_run, tmp_path_factory) -> tuple[str, Path]:
    """(script, output) of four steps on two ranks."""
    output = tmp_path_factory.mktemp("sharded")
    train(request.param, settings_of(small_run, request.param, 2), output, ranks=2)
    return request.param, output


def saved(output: Path, step: int) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint, those of the shards joined."""
    found = {}
    for part in ("backbone.pth", "state.pth"):
        content = torch.load(output / f"{step}{part}", weights_only=True)
        found |= {part + name: item for name, item in tensors(content) if isinstance(item, torch.Tensor)}
    files = [load_file(path) for path in sorted((output / f"{step}centers.dcp").iterdir())]
    return found | {name: torch.cat([file[name] for file in files]) for name in files[0]}


def assert_same(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> None:
    """All tensors are bit-equal, apart from the settings of the run."""
    assert before.keys() == after.keys()
    assert [name for name, item in before.items() if not torch.equal(after[name], item)] == []


def test_a_sharded_run_saves_a_file_of_each_rank_and_a_header(run):
    script, output = run
    assert complete_steps(output) == [1, 2, 3, 4]
    assert len(list((output / "4centers.dcp").iterdir())) == 2
    assert "the centers of 6 classes are split over 2 ranks" in (output / "training.log").read_text()
    tensors_of_run = saved(output, 4)
    assert ("momentum" in tensors_of_run) == (script == SCRIPTS[1])
    header = torch.load(output / "4header.pth", weights_only=True)
    assert torch.equal(header["kernel"].t(), tensors_of_run["centers"]) and "batch_mean" in header
    checked = subprocess.run(["sha256sum", "-c", "4sha256.txt"], cwd=output, capture_output=True, text=True)
    assert checked.returncode == 0 and checked.stdout.count("OK") == 5


def test_the_losses_are_those_of_whole_centers(run, small_run, tmp_path):
    script, output = run
    if script == SCRIPTS[1]:
        pytest.skip("with sample_rate below 1, other classes are drawn")
    train(script, settings_of(small_run, script, 2), tmp_path, "shard_centers=off", "max_steps=2", ranks=2)
    for sharded, whole in zip(metrics(output)[:2], metrics(tmp_path), strict=True):  # later, differences grow
        sharded, whole = ({**line, "kind": 0} for line in (sharded, whole))  # approx takes only numbers
        assert sharded == pytest.approx(whole, rel=1e-4, abs=1e-6)
    centers = torch.load(tmp_path / "2header.pth", weights_only=True)["kernel"].t()
    torch.testing.assert_close(saved(output, 2)["centers"], centers, rtol=0, atol=1e-5)


def test_a_resumed_run_is_bit_equal(run, small_run, tmp_path):
    script, output = run
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    train(script, settings_of(small_run, script, 2), tmp_path, "global_step=2", ranks=2)
    assert_same(saved(output, 4), saved(tmp_path, 4))


def test_a_run_resumes_on_another_number_of_ranks(run, small_run, tmp_path):
    script, output = run
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    ranks = 3 if script == SCRIPTS[0] else 0
    settings = [*settings_of(small_run, script, max(ranks, 1)), "global_step=2", "max_steps=3"]
    train(script, settings, tmp_path, ranks=ranks)
    assert len(list((tmp_path / "3centers.dcp").iterdir())) == max(ranks, 1)
    if script == SCRIPTS[0]:  # sampled classes depend on the number of ranks
        torch.testing.assert_close(saved(tmp_path, 3)["centers"], saved(output, 3)["centers"], rtol=0, atol=1e-5)
        before, after = ([line for line in metrics(folder) if line["step"] == 3] for folder in (output, tmp_path))
        assert after[0]["loss"] == pytest.approx(before[0]["loss"], rel=1e-4)


def test_sharded_and_whole_checkpoints_can_replace_each_other(small_run, tmp_path):
    """Trained centers with momentum: sharded, then whole, then sharded again, like whole all the time."""
    settings = [*small_run, *SHARDED, "batch_size=12", "sync_bn=True", "num_epoch=9"]
    for steps, form in ((1, "on"), (2, "off"), (3, "on")):
        more = [f"shard_centers={form}", f"max_steps={steps}"]
        train(SCRIPTS[1], settings, tmp_path / "mixed", *more, "resume=auto", ranks=2)
    train(SCRIPTS[1], settings, tmp_path / "whole", "shard_centers=off", "max_steps=3", ranks=2)
    assert not (tmp_path / "mixed" / "2centers.dcp").exists()
    mixed, whole = (torch.load(tmp_path / name / "3header.pth")["kernel"] for name in ("mixed", "whole"))
    torch.testing.assert_close(mixed, whole, rtol=0, atol=1e-4 * float(whole.abs().max()))


def test_a_damaged_shard_is_found_and_an_older_checkpoint_resumes(run, small_run, tmp_path):
    script, output = run
    shutil.copytree(output, tmp_path, dirs_exist_ok=True)
    settings = settings_of(small_run, script, 2)
    shard = sorted((tmp_path / "4centers.dcp").iterdir())[1]
    shard.write_bytes(shard.read_bytes()[:-1])
    done = run_script(script, *settings, f"output={tmp_path}", "global_step=4", "max_steps=5", ranks=2)
    assert done.returncode != 0 and shard.name in done.stderr and "resume from an older step" in done.stderr
    shard.unlink()
    assert shard.name in damage(tmp_path, 4)
    train(script, settings, tmp_path, "resume=auto", ranks=2)
    assert "resuming from step 3" in (tmp_path / "training.log").read_text()
    assert_same(saved(output, 4), saved(tmp_path, 4))


def test_sums_are_of_the_written_bytes(run):
    output = run[1]
    for line in (output / "4sha256.txt").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((output / name).read_bytes()).hexdigest() == digest


def test_a_header_is_gathered_from_the_shards(run, tmp_path):
    """The header that the run wrote itself is removed, as of centers that are too large for rank 0."""
    shutil.copytree(run[1], tmp_path, dirs_exist_ok=True)
    (tmp_path / "4header.pth").unlink()
    sums = tmp_path / "4sha256.txt"
    sums.write_text("".join(line for line in sums.read_text().splitlines(keepends=True) if "header" not in line))
    assert complete_steps(tmp_path) == [1, 2, 3, 4] and damage(tmp_path, 4) is None
    done = run_script("tools/gather_header.py", tmp_path)
    assert done.returncode == 0 and "kernel [16, 6]" in done.stdout, done.stderr
    before, after = (torch.load(folder / "4header.pth", weights_only=True) for folder in (run[1], tmp_path))
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert damage(tmp_path, 4) is None and "4header.pth" in sums.read_text()
    done = run_script("tools/gather_header.py", tmp_path, "--step", "7")
    assert done.returncode == 2 and "steps with shards: 1, 2, 3, 4" in done.stderr


def shards_of(folder: Path, name: str) -> Shards:
    """Shards that were written, but are not part of a checkpoint yet."""
    temporary = folder / f".{name}.1.part"
    temporary.mkdir(parents=True)
    (temporary / "shard-00001.safetensors").write_bytes(b"1")
    return Shards(temporary, {"shard-00001.safetensors": hashlib.sha256(b"1").hexdigest()})


def test_no_shards_stay_of_checkpoints_that_failed_or_were_half_removed(tmp_path, monkeypatch):
    saver = Saver(tmp_path, 1, print)
    content = Checkpoint({"a": torch.zeros(1)}, None, {"b": 1})
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
        saver.save(1, content, shards_of(tmp_path, "1centers.dcp"))
        saver.finish()
    assert saver.unsaved == 1 and list(tmp_path.iterdir()) == []
    for step in (2, 3):
        saver.save(step, content, shards_of(tmp_path, f"{step}centers.dcp"))
        saver.finish()
        if step == 2:
            (tmp_path / "2state.pth").unlink()  # as after an interrupted removal
    assert complete_steps(tmp_path) == [3] and not (tmp_path / "2centers.dcp").exists()


def test_a_gathered_header_that_was_interrupted_leaves_an_intact_checkpoint(tmp_path, monkeypatch):
    save(tmp_path, 5, Checkpoint({"a": torch.zeros(1)}, None, {"b": 1}), shards_of(tmp_path, "5centers.dcp"))
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_text", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            add_header(tmp_path, 5, {"kernel": torch.zeros(2, 3)})
    assert (tmp_path / "5header.pth").exists() and damage(tmp_path, 5) is None
    add_header(tmp_path, 5, {"kernel": torch.ones(2, 3)})
    assert damage(tmp_path, 5) is None
