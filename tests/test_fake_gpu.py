"""Training steps on fake CUDA tensors: they mix no devices, and the host never waits for the device."""

import itertools
from collections.abc import Callable
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from easydict import EasyDict
from fake_cuda import GPU, NeverWaits, fake_cuda
from torch import Tensor, nn

from backbones import build_backbone
from config import load_config
from data.augment import DRAWS, NUMBERS, build_augmentation
from data.images import SIZE
from data.loader import Batch, to_batch
from heads import HeadOutput
from train import batchnorm, tasks
from train.step import TrainingStep
from train.tasks import Distillation
from utils.precision import cast_products, compute_type

pytestmark = pytest.mark.skipif(
    not torch.__version__.startswith("2.14."), reason="fake_cuda.py depends on internals of torch 2.14"
)

BATCH, CLASSES = 4, 40_000
AUGMENTED = [f"{name}_augmentation_prob=0.2" for name in NUMBERS]


def live_teacher(cfg: EasyDict, device: torch.device, release: object) -> nn.Module:
    """A teacher with fake weights: a frozen network like the student."""
    network = build_backbone(cfg).eval().requires_grad_(False)
    network.loaded = "fake weights"
    network = cast_products(network, compute_type(cfg.dtype, device))
    return network.to(device, memory_format=torch.channels_last)


def take_two_steps(teacher: str, *overrides: str) -> Tensor:
    """Take two training steps with a cached or a live teacher. Returns the norm of the gradient."""
    cfg = load_config(overrides=["dataset=custom", "width=0.25", "compile=off", f"batch_size={BATCH}", *overrides])
    cfg.num_classes = CLASSES
    release = SimpleNamespace(describe=dict, network="fake", origin="here")
    replaced = {"build_live_teacher": live_teacher, "find_teacher": lambda cfg: release, "teacher_notes": lambda *_: ()}
    with fake_cuda(), mock.patch.multiple(tasks, **replaced):
        task = Distillation(cfg, mock.MagicMock(num_classes=CLASSES), GPU)
        take_step = TrainingStep(cfg, task, 100, BATCH, GPU)
        task.student.train()
        task.head.train()
        tensors = (
            torch.empty(BATCH, SIZE, SIZE, 3, dtype=torch.uint8, device=GPU),
            torch.zeros(BATCH, dtype=torch.int64, device=GPU),
            torch.zeros(BATCH, dtype=torch.bool, device=GPU),
            torch.zeros(BATCH, DRAWS, device=GPU),
            torch.empty(BATCH, cfg.embedding_size, dtype=torch.float16, device=GPU) if teacher == "cached" else None,
        )
        with mock.patch("data.augment.resampling", lambda *_: torch.empty(SIZE, SIZE)):  # 630 matrices, slow if fake
            augment = build_augmentation(cfg, GPU)
        with NeverWaits():
            batches = (to_batch(*tensors, GPU, augment) for _ in itertools.count())
            for done in (0, 1):
                result = take_step(batches, done)
                take_step.bad_steps.too_many()
        return result.stats["grad_norm"]


@pytest.mark.parametrize(
    ("teacher", "overrides"),
    [
        ("cached", ["dtype=bfloat16"]),
        ("cached", ["norm_source=teacher", "norm_statistics_start=first_batch", "geom_margin=progress"]),
        ("live", ["dtype=bfloat16"]),
        ("live", ["dtype=float16", "accumulate_steps=2", *AUGMENTED]),
    ],
    ids=["cached", "variants of the margin", "live", "float16, augmented and accumulated"],
)
def test_a_step_on_a_gpu_mixes_no_devices_and_never_waits(teacher, overrides):
    norm = take_two_steps(teacher, *overrides)
    assert norm.device == GPU and norm.dtype == torch.float32


def test_synchronised_batchnorm_never_waits():
    """As on one of two ranks. torch's SyncBatchNorm makes the host wait in every layer."""
    with mock.patch.multiple(batchnorm, world_size=lambda: 2, sum_over_ranks=lambda tensor: None):
        take_two_steps("cached", "dtype=bfloat16", "sync_bn=True")


@pytest.mark.parametrize(
    ("mistake", "error"),
    [
        (lambda loss: loss + torch.zeros(1), "Expected all tensors to be on the same device"),
        (lambda loss: loss * loss.item(), "local_scalar_dense"),
        (lambda loss: loss * loss.detach().cpu().to(GPU, non_blocking=True), "the host waits for a copy"),
        (lambda loss: loss + torch.tensor(1.0, device="cpu").to(GPU), "the host waits for a copy"),
        (lambda loss: loss[loss.isfinite()].mean(), "nonzero"),
    ],
    ids=["device", "item", "to the host", "to the device", "boolean mask"],
)
def test_mistakes_in_a_step_are_found(mistake: Callable[[Tensor], Tensor], error: str):
    def forward(self: Distillation, batch: Batch) -> HeadOutput:
        output = correct(self, batch)
        return output._replace(loss=mistake(output.loss[None]).sum())

    correct = Distillation.forward
    with mock.patch.object(Distillation, "forward", forward), pytest.raises(Exception, match=error):
        take_two_steps("cached", "dtype=bfloat16")
