"""Mean teacher embeddings of the classes: as centers that never move (centers = "mean"), or only for conf_t."""

import shutil

import numpy as np
import pytest
import torch
from conftest import ROOT
from runs import metrics
from slow_heads import cosine, slow_means

from config import load_config
from data.dataset import build_dataset
from train import tasks
from train.loop import Trainer
from train.tasks import Distillation


@pytest.fixture
def settings(small_run, cached, tmp_path) -> list[str]:
    for suffix in (".npy", ".json"):
        shutil.copy(cached.with_suffix(suffix), tmp_path / f"teacher{suffix}")
    return [
        *small_run, f"teacher_embeddings={tmp_path / 'teacher.npy'}", "centers=mean", "num_workers=0", "val_targets=[]",
        f"output={tmp_path / 'run'}",
    ]  # fmt: skip


def run(settings: list[str], *more: str) -> tuple[Distillation, torch.Tensor]:
    """A run, and the centers with which its head was built."""
    cfg = load_config(ROOT / "config" / "config.py", [*settings, *more])
    dataset = build_dataset(cfg)
    task = Distillation(cfg, dataset, torch.device("cpu"))
    initial = task.head.own_centers().clone()
    Trainer(cfg, task, dataset, torch.device("cpu")).run()
    return task, initial


@pytest.mark.parametrize("sharded", ["off", "on"])
def test_a_run_has_the_means_as_centers_and_a_resumed_one_takes_them_from_its_checkpoint(
    settings, tmp_path, monkeypatch, sharded
):
    task, initial = run(settings, "max_steps=2", f"shard_centers={sharded}")
    stored = np.load(tmp_path / "teacher.npy")
    expected = slow_means(np.repeat(np.arange(6), 8), stored, 6)
    assert abs(task.head.own_centers().numpy() - expected).max() < 1e-7
    assert initial.abs().max() < 0.1 < abs(expected).max()
    monkeypatch.setattr(tasks, "class_means", lambda *_: pytest.fail("computed again"))
    resumed, _ = run(settings, "max_steps=4", "resume=auto", f"shard_centers={sharded}")
    assert torch.equal(resumed.head.own_centers(), task.head.own_centers())
    assert len(metrics(tmp_path / "run")) == 4


def test_a_class_without_images_keeps_its_random_center_and_a_projection_is_applied(settings, monkeypatch):
    labels = np.repeat(np.arange(6), 8) // 2 * 2  # none of classes 1, 3 and 5
    monkeypatch.setattr("data.dataset.RecordDataset.read_labels", lambda self, positions: labels[positions])
    task, initial = run(settings, "max_steps=1", "embedding_size=8", "teacher_projection=pca")
    rows = [task.embeddings.rows(np.arange(48), np.full(48, flip)).numpy() for flip in (False, True)]
    expected = slow_means(labels, np.stack(rows, 1), 6)
    centers = task.head.own_centers()
    assert abs(centers[::2].numpy() - expected[::2]).max() < 1e-7 and torch.equal(centers[1::2], initial[1::2])


def test_confidence_can_be_measured_with_the_means_while_the_centers_move_also_in_a_resumed_run(settings, tmp_path):
    settings = [*settings, "centers=ema", "confidence_centers=mean", "shard_centers=on"]
    task, _ = run(settings, "max_steps=2")
    stored = np.load(tmp_path / "teacher.npy")
    means = slow_means(np.repeat(np.arange(6), 8), stored, 6)
    assert abs(task.head.confidence_centers[:6].numpy() - means).max() < 1e-7
    assert abs(task.head.own_centers().numpy() - means).max() > 0.01
    resumed, _ = run(settings, "max_steps=4", "resume=auto")
    whole, _ = run(settings, "max_steps=4", f"output={tmp_path / 'whole'}")
    assert torch.equal(resumed.head.own_centers(), whole.head.own_centers())
    assert metrics(tmp_path / "run") == metrics(tmp_path / "whole")
    positions, labels = np.arange(0, 48, 5), np.arange(0, 48, 5) // 8
    f_t, centers = task.embeddings.rows(positions, np.zeros(10, dtype=bool)), task.head.own_centers().clone()
    conf_t = [cosine(means[y], row) for y, row in zip(labels, f_t.numpy().astype(np.float64), strict=True)]
    out = task.head.train()(torch.from_numpy(means[labels]).float(), f_t, torch.from_numpy(labels))
    assert out.stats["conf_t"].item() == pytest.approx(np.mean(conf_t), rel=1e-5)
    assert out.stats["alpha"].item() == pytest.approx(np.mean(np.square(conf_t)), rel=1e-5)  # cos_st is conf_t
    assert not torch.equal(task.head.own_centers(), centers)
