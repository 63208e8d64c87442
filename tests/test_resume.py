"""Resuming: what makes another run is refused, other changes are logged, and a run's config.py starts the same run."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from runs import SCRIPTS, assert_same_checkpoint, metrics, train, value

from config import dump_config, load_config
from config.conflicts import STANDALONE
from data.dataset import RecordDataset, build_dataset
from data.recordio import write_record_set
from train import checkpoint
from train.checkpoint import CheckpointError
from train.loop import Trainer
from train.resume import RunState
from train.tasks import Distillation, Standalone

CPU = torch.device("cpu")
# Another value of each key that is part of a run; what the error says, if not the name of the key.
METHOD = {
    "order=blocks": None, "order_window=16": None, "order_block=8": None, "shared_labels=True": None,
    "train_flip=False": None, "low_res_augmentation_prob=0.2": None,
    "crop_augmentation_prob=0.2": None, "photometric_augmentation_prob=0.1": None, "teacher_view=clean": None,
    "sync_bn=True": None, "loss=CosFace": None, "s=32": None, "m=0.1": None, "h=0.4": None, "t_alpha=0.1": None,
    "norm_statistics_start=first_batch": None, "centers=mean": None, "norm_source=teacher": None,
    "adaptive_alpha=False": None, "use_geom_margin=False": None, "geom_margin=static": None, "geom_margin_w=0.3": None,
    "geom_margin_k=1": None, "geom_margin_mask=0.5": None, "geom_margin_baseline=0.1": None,
    "geom_margin_warmup_epoch=0": None, "feature_kd=cosine": None, "feature_kd_weight=2": None, "momentum=0.5": None,
    "weight_decay=0": None, "clip_grad_norm=1": None, "seed=3": None, "batch_size=4": "total_batch 8 (now 4)",
}  # fmt: skip
MAY_CHANGE = ["lr=0.01", "lr_schedule=cosine", "lr_milestones=[1]", "warmup_epoch=0", "num_epoch=9", "num_workers=0",
              "compile=off", "dtype=float16", "val_flip=False", "log_every=3", "checkpoint_every=1"]  # fmt: skip


def state_of(settings: list[str], task: type = Distillation) -> RunState:
    """What a run with these settings stores and resumes."""
    cfg = load_config(overrides=[*settings, "resume=auto"], conflicts=STANDALONE)
    dataset = build_dataset(cfg)
    built = task(cfg, dataset, CPU) if task is Distillation else task(cfg, CPU)
    return Trainer(cfg, built, dataset, CPU).state


@pytest.fixture(scope="module")
def run(small_run, tmp_path_factory) -> list[str]:
    """The settings of a run with a checkpoint of step 3."""
    settings = [*small_run, f"output={tmp_path_factory.mktemp('run')}"]
    checkpoint.save(value(settings, "output"), 3, state_of(settings).checkpoint())
    return settings


@pytest.mark.parametrize("change", METHOD)
def test_a_change_of_the_method_is_refused_and_named(run, change):
    key, text = change.split("=")
    with pytest.raises(CheckpointError) as error:
        state_of([*run, change]).resume()
    assert (METHOD[change] or f"{key} ") in str(error.value) and "resume with the same settings" in str(error.value)
    assert METHOD[change] or f"(now {text}" in str(error.value).replace("'", "")


@pytest.mark.parametrize("change", MAY_CHANGE)
def test_a_change_that_is_allowed_is_logged(run, change):
    key, text = change.split("=")
    step, (note,) = state_of([*run, change]).resume()
    assert step == 3 and note.startswith(f"changed: {key} ") and text in note.replace("'", "")


def test_another_teacher_and_other_images_are_refused_wherever_they_are(run, tmp_path):
    weights = torch.load(value(run, "pretrained_teacher_path"), weights_only=True)
    torch.save({key: 2 * tensor for key, tensor in weights.items()}, tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match=r"with teacher 'mobilefacenet, RGB, sha256 \w{16}' \(now"):
        state_of([*run, f"pretrained_teacher_path={tmp_path / 'other.pth'}"]).resume()
    for name in ("train.rec", "train.idx", "property"):
        shutil.copy(Path(value(run, "rec"), name), tmp_path)
    shutil.copy(value(run, "pretrained_teacher_path"), tmp_path / "same.pth")
    moved = [f"pretrained_teacher_path={tmp_path / 'same.pth'}", f"rec={tmp_path}"]
    step, notes = state_of([*run, *moved]).resume()
    assert step == 3 and [note.split()[1] for note in notes] == ["rec", "pretrained_teacher_path"]
    images = RecordDataset(tmp_path)
    encoded = [bytes(images.read(position)[0]) for position in (1, 0, *range(2, 48))]
    write_record_set(tmp_path, encoded, np.repeat(np.arange(6), 8), 6)
    with pytest.raises(CheckpointError, match=r"with training set 'sha256 \w{16}' \(now"):
        state_of([*run, *moved]).resume()


def test_the_file_of_a_teacher_is_the_same_teacher(run, cached):
    step, (note,) = state_of([*run, f"teacher_embeddings={cached}"]).resume()
    assert step == 3 and note.startswith("changed: teacher_embeddings [] (now ")


def test_keys_without_effect_may_change(run, small_run, tmp_path):
    assert state_of([*run, "m=0.4"]).resume() == (3, [])  # the default of AdaFace
    settings = [*small_run, f"output={tmp_path}"]
    checkpoint.save(tmp_path, 3, state_of(settings, Standalone).checkpoint())
    without_effect = ["feature_kd=l2", "geom_margin_k=9", "teacher_view=clean", "norm_source=teacher"]
    without_effect += ["confidence_centers=mean"]
    assert state_of([*settings, *without_effect], Standalone).resume()[0] == 3
    with pytest.raises(CheckpointError, match="task 'Standalone'"):
        state_of(settings).resume()


OLD_KEYS = ["task", "total_batch", "network", "embedding_size", "width", "SE", "loss", "num_classes", "num_image"]


def test_a_checkpoint_of_an_older_version_is_compared_with_the_config_file_beside_it(run, tmp_path):
    settings = [*run, f"output={tmp_path}"]
    saved = state_of(settings).checkpoint()
    old = {key: saved.state["run"][key] for key in OLD_KEYS}
    saved.state.pop("may_change")
    checkpoint.save(tmp_path, 3, saved._replace(state={**saved.state, "run": old}))
    step, (note,) = state_of([*settings, "m=0.2", "lr=0.3"]).resume()
    assert step == 3 and note.startswith("WARNING") and "did not store training set, teacher, shared_labels, " in note
    (tmp_path / "config.py").write_text(dump_config(load_config(overrides=settings), "an older version"))
    step, (note,) = state_of([*settings, "lr=0.3"]).resume()
    assert step == 3 and "did not store training set, teacher; these were not compared" in note
    with pytest.raises(CheckpointError, match=r"with s 64.0 \(now 20\), m 0.4 \(now 0.1\);"):
        state_of([*settings, "m=0.1", "s=20"]).resume()
    (tmp_path / "config.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\npreset = dict(m=1)\n")
    assert state_of(settings).resume()[0] == 3 and not (tmp_path / "executed").exists()


def test_the_config_of_a_resumed_run_starts_the_same_run_elsewhere_and_continues_it(small_run, tmp_path):
    script, first = SCRIPTS[0], tmp_path / "first"
    train(script, small_run, first, "checkpoint_every=2", "max_steps=4")
    train(script, small_run, first, "checkpoint_every=2", "max_steps=6", "global_step=2")
    for output, more in ((tmp_path / "second", []), (first, ["resume=auto", "max_steps=8"])):
        done = run_script(script, "--config", first / "config.py", f"output={output}", *more)
        assert done.returncode == 0, done.stderr
    assert_same_checkpoint(first, tmp_path / "second", 6)
    assert metrics(first)[:6] == metrics(tmp_path / "second")[:6] and "WARNING" not in done.stdout


def test_the_config_in_a_run_folder_that_was_moved_is_noticed(small_run, tmp_path):
    train(SCRIPTS[0], small_run, tmp_path / "run", "max_steps=2")
    (tmp_path / "run").rename(tmp_path / "moved")
    again = ["--config", tmp_path / "moved" / "config.py", "resume=auto", "max_steps=4"]
    done = run_script(SCRIPTS[0], *again)
    warning = f"is in a folder with checkpoints (of steps 2), but output is {tmp_path / 'run'}"
    assert f"{warning}; if you moved the folder, set output={tmp_path / 'moved'}" in done.stdout, done.stderr
    assert warning in (tmp_path / "run" / "training.log").read_text()
    done = run_script(SCRIPTS[0], *again, f"output={tmp_path / 'moved'}")
    assert "from step 2 to 4" in done.stdout and "WARNING" not in done.stdout
