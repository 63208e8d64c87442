"""The live teacher: the embeddings of the released network, in the data type of the run, and when it is compiled."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from unittest import mock

import numpy as np
import pytest
import torch
from golden_networks import recipe
from teacher_files import plain_settings
from torch import nn

from backbones import NETWORKS, build_teacher, find_teacher
from config import load_config
from data.dataset import build_dataset
from data.loader import Batch
from train import teachers
from train.tasks import Distillation
from train.teachers import build_cached_teacher, build_live_teacher

CPU = torch.device("cpu")


@pytest.fixture
def cfg(tmp_path):
    """Settings with a narrow MobileFaceNet as the teacher, whose BatchNorms are not those of a new network."""
    cfg = plain_settings(tmp_path / "teacher.pth", teacher_width=0.25)
    network = NETWORKS["mobilefacenet"](plain_settings(cfg.pretrained_teacher_path, width=0.25))
    torch.save({key: recipe(key, list(v.shape)) for key, v in network.state_dict().items()}, tmp_path / "teacher.pth")
    return cfg


IMAGES = torch.rand(4, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1


@torch.no_grad()
def test_the_live_teacher_gives_the_embeddings_of_the_released_network(cfg):
    live = build_live_teacher(cfg, CPU, find_teacher(cfg))
    expected = build_teacher(cfg)(IMAGES)
    assert (live(IMAGES) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert live.loaded == build_teacher(cfg).loaded
    assert not any(isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d) for module in live.modules())


@torch.no_grad()
def test_converting_the_weights_of_prelus_once_is_what_autocast_does_in_each_pass(cfg):
    cfg.dtype = "bfloat16"
    live = build_live_teacher(cfg, CPU, find_teacher(cfg))
    assert {weight.dtype for weight in live.parameters()} == {torch.bfloat16}
    every_time = copy.deepcopy(live)
    for module in every_time.modules():
        if isinstance(module, nn.PReLU):
            module.float()
    exact = build_teacher(cfg)(IMAGES)
    with torch.autocast("cpu", torch.bfloat16):
        embeddings = live(IMAGES)
        assert torch.equal(embeddings, every_time(IMAGES))
    assert torch.cosine_similarity(embeddings.float(), exact).min() > 0.999


@pytest.fixture
def compiled() -> Iterator[Counter]:
    """The sizes of the batches that compiled networks get, and how many of each. Nothing is compiled."""
    sizes = Counter()

    def count(network: Callable, dynamic: bool) -> Callable:
        assert dynamic is False
        if not isinstance(network, nn.Module):  # the head's add_block
            return network
        return lambda images: sizes.update([len(images)]) or network(images)

    with mock.patch("torch.compile", count):
        yield sizes


@pytest.mark.parametrize(("setting", "passes"), [("on", 2), ("auto", 0), ("off", 0)])
def test_the_live_teacher_is_compiled_like_the_student_but_not_for_the_check_before_training(
    small_run, compiled, setting, passes
):
    cfg = load_config(overrides=[*small_run, f"compile={setting}"])
    task = Distillation(cfg, build_dataset(cfg), CPU)
    assert any(note.startswith("teacher on ") for note in task.notes) and not compiled
    task.forward(Batch(IMAGES, IMAGES, torch.arange(4), None))
    assert compiled == Counter({4: passes})


@pytest.mark.parametrize(("from_images", "whole_batches"), [(48, 2), (49, 0)])
def test_a_large_set_is_embedded_by_the_compiled_teacher_except_its_last_batch(
    small_run, tmp_path, compiled, monkeypatch, from_images, whole_batches
):
    """48 images in batches of 20, 20 and 8, each with its mirror images."""
    monkeypatch.setattr(teachers, "MIN_IMAGES_TO_COMPILE", from_images)
    path = tmp_path / "teacher.npy"
    cfg = load_config(overrides=[*small_run, "compile=on", "val_batch_size=20", f"teacher_embeddings={path}"])
    build_cached_teacher(cfg, build_dataset(cfg), CPU)
    assert compiled == Counter({20: 2 * whole_batches})
    assert np.isfinite(np.load(path)).all()
