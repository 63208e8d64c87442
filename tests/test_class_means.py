"""Mean teacher embeddings of the classes: as centers that never move (centers = "mean"), or only for conf_t."""

import multiprocessing
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from conftest import ROOT
from runs import metrics
from slow_heads import cosine

from config import load_config
from data import class_means as module
from data.class_means import class_means
from data.dataset import build_dataset
from data.teacher_cache import EmbeddingError, TeacherEmbeddings
from heads.sharded import owned_classes
from train import tasks
from train.loop import Trainer
from train.tasks import Distillation

IMAGES, CLASSES, SIZE = 150, 11, 24
EMPTY = [0, 7]  # classes without images
WORLDS = (1, 2, 3)


class RandomSet(TeacherEmbeddings):
    """Labels in random order, and embeddings, float16 [N, 2, D], of very different lengths."""

    num_classes = CLASSES

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self.labels = rng.choice(np.setdiff1d(np.arange(CLASSES), EMPTY), IMAGES)
        lengths = 10.0 ** rng.uniform(-1, 2, (IMAGES, 2, 1))
        self.stored = (lengths * rng.standard_normal((IMAGES, 2, SIZE))).astype(np.float16)
        self.longest = 0

    def __len__(self) -> int:
        return IMAGES

    def read_labels(self, positions: np.ndarray) -> np.ndarray:
        return self.labels[positions]

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> torch.Tensor:
        self.longest = max(self.longest, len(positions))
        return torch.from_numpy(self.stored[positions, flips.astype(int)])


def slow_means(labels: np.ndarray, stored: np.ndarray, classes: int) -> np.ndarray:
    """The mean unit embedding of each class, in float64, one embedding after the other."""
    sums, counts = np.zeros((classes, stored.shape[2])), np.zeros(classes)
    for label, views in zip(labels, stored.astype(np.float64), strict=True):
        for row in views:
            sums[label] += row / np.sqrt((row * row).sum())
            counts[label] += 1
    return sums / np.maximum(counts, 1)[:, None]


def work(number: int, folder: str) -> None:
    torch.set_num_threads(1)
    module.CHUNK = 8
    for world in WORLDS:
        if number >= world:
            continue
        dist.init_process_group("gloo", init_method=f"file://{folder}/init{world}", rank=number, world_size=world)
        both = RandomSet()
        means = [class_means(both, both, SIZE, owned) for owned in (None, owned_classes(CLASSES))]
        torch.save((*means, both.longest), f"{folder}/{world}_{number}.pt")
        dist.barrier()
        dist.destroy_process_group()


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """The means of each rank of each number of ranks: of all classes, of its own, and the most rows read at once."""
    folder = tmp_path_factory.mktemp("means")
    multiprocessing.set_forkserver_preload(["torch"])
    mp.start_processes(work, (str(folder),), max(WORLDS), start_method="forkserver")
    return folder


@pytest.mark.parametrize("world", WORLDS)
def test_the_means_are_those_of_float64_and_bit_equal_for_any_number_of_ranks(folder, world):
    both = RandomSet()
    of_one = class_means(both, both, SIZE)  # in one chunk
    assert both.longest == IMAGES and not of_one[EMPTY].any()
    expected = slow_means(both.labels, both.stored, CLASSES)
    assert abs(of_one.numpy() - expected).max() < 1e-7
    of_all, of_own, longest = zip(*(torch.load(folder / f"{world}_{rank}.pt") for rank in range(world)), strict=True)
    assert all(torch.equal(means, of_one) for means in of_all) and torch.equal(torch.cat(of_own), of_one)
    assert max(longest) == 8


def test_embeddings_that_are_not_finite_are_refused():
    both = RandomSet()
    both.stored[3, 1, 2] = np.inf
    with pytest.raises(EmbeddingError, match="not all embeddings are finite"):
        class_means(both, both, SIZE)


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


@pytest.mark.parametrize("sharded", ["off", "on"])
def test_confidence_can_be_measured_with_the_means_while_the_centers_move_also_in_a_resumed_run(
    settings, tmp_path, sharded
):
    settings = [*settings, "centers=ema", "confidence_centers=mean", f"shard_centers={sharded}"]
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
