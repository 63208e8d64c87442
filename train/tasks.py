"""The two tasks that the loop can train: a student under a teacher, and a network by itself."""

import importlib.util
import os
import shutil
import sysconfig
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import record_function

from backbones import build_backbone, find_teacher
from data.augment import Augmentation
from data.dataset import FaceDataset
from data.images import to_input
from data.loader import TrainingBatch
from data.teacher_cache import EmbeddingFile
from eval.embeddings import embed_views
from heads import HeadOutput, build_head, build_standalone_head
from heads.head import Head
from train.sanity import teacher_notes
from train.sync_batchnorm import synchronise
from train.teachers import cached_teacher, live_teacher
from utils.distributed import rank, world_size
from utils.precision import compute_type


class StepInput(NamedTuple):
    """This rank's part of a batch, on the device.

    images: float [B, 3, 112, 112] in [-1, 1], the student's view; clean: the same without augmentation; labels: int64
    [B]; teacher: float16 [B, D], the teacher's embeddings of `clean`, where they come from a file, or None.
    """

    images: Tensor
    clean: Tensor
    labels: Tensor
    teacher: Tensor | None


def step_input(batch: TrainingBatch, augment: Augmentation | None, device: torch.device) -> StepInput:
    """Copy the bytes, and flip, normalise and augment on the device."""
    labels, draws, teacher = (
        None if tensor is None else tensor.to(device, non_blocking=True)
        for tensor in (batch.labels, batch.draws, batch.teacher)
    )
    clean = to_input(batch.images, batch.flips, device)
    return StepInput(augment(clean, draws) if augment else clean, clean, labels, teacher)


class Task:
    """A bare student and head (what checkpoints hold), and those in DDP wrappers and compiled (what steps use)."""

    notes: tuple[str, ...] = ()  # what the log says at start: of the teacher, of settings that have no effect
    embeddings: EmbeddingFile | None = None  # of the training images, to come with each batch

    def __init__(self, cfg: EasyDict, head: Head, device: torch.device) -> None:
        torch.manual_seed(cfg.seed)  # the same weights to start from, whatever was built before
        student = build_backbone(cfg)
        student = synchronise(student, device) if cfg.sync_bn else student
        self.student = student.to(device, memory_format=torch.channels_last)
        self.head = head.to(device)
        self._buffers = [*self.student.buffers(), *self.head.softmax.buffers()]
        self._wrappers = _shared(self.student, device), _shared(self.head, device)
        self._student, self._head = self._wrappers
        if compiles(cfg.compile, device):
            self._student = torch.compile(self._student, dynamic=False)
        elif cfg.compile == "auto" and device.type == "cuda":
            self.notes += (f"the student is not compiled: it needs {', '.join(_missing_compiler(device))}",)

    def step(self, batch: StepInput) -> HeadOutput:
        """Loss and statistics of this rank's part of a batch."""
        raise NotImplementedError

    def begin_step(self) -> None:
        """What forward passes change from here on can be undone by `end_step`."""
        self._kept = Kept(self._buffers)
        self.head.begin_step()

    def end_step(self, undo: Tensor) -> None:
        """Undo all that forward passes changed where `undo`, a bool [] on the device, is true."""
        self._kept.give_back(undo)
        self.head.end_step(undo)

    def no_sync(self) -> AbstractContextManager:
        """A context in which gradients are summed up but not yet shared over ranks."""
        stack = ExitStack()
        for module in self._wrappers:
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack


class Kept:
    """A copy of tensors, made in few operations, to be given back or not without waiting for the device."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._kinds = [[t for t in tensors if t.dtype == dtype] for dtype in {tensor.dtype for tensor in tensors}]
        self._copies = [_joined(kind) for kind in self._kinds]

    def give_back(self, undo: Tensor) -> None:
        """The tensors as they were where `undo`, a bool [], is true."""
        for tensors, copy in zip(self._kinds, self._copies, strict=True):
            parts = torch.where(undo, copy, _joined(tensors)).split([tensor.numel() for tensor in tensors])
            torch._foreach_copy_(tensors, [part.view_as(t) for part, t in zip(parts, tensors, strict=True)])


def _joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


class Distillation(Task):
    """The student under the frozen teacher, or under its embeddings in a file and no teacher in memory."""

    def __init__(self, cfg: EasyDict, dataset: FaceDataset, device: torch.device) -> None:
        self._view = cfg.teacher_view
        if cfg.teacher_embeddings:
            self.embeddings, self.notes = cached_teacher(cfg, dataset, device)
        else:
            release = find_teacher(cfg)
            self._teacher = live_teacher(cfg, device, release)
            self.notes += (f"teacher: {release.network} from {release.origin}",)
        if rank() == 0:  # the others' lines are not logged
            self.notes += teacher_notes(dataset, partial(self._embed, cfg, dataset, device), cfg.seed)
        super().__init__(cfg, build_head(cfg), device)
        if cfg.use_geom_margin and not self.head.softmax.margin.takes_geometry:
            self.notes += (f"use_geom_margin is ignored: {cfg.loss} has no geometry term, AdaFace has",)
        if cfg.pretrained_teacher_header_path and cfg.centers == "ema":
            self.notes += ("pretrained_teacher_header_path is ignored: centers = 'ema' start at random",)

    def step(self, batch: StepInput) -> HeadOutput:
        with record_function("student"):
            student = self._student(batch.images)
        with record_function("teacher"):
            teacher = self._target(batch)
        with record_function("head"):
            return self._head(student, teacher, batch.labels)

    @torch.no_grad()
    def _target(self, batch: StepInput) -> Tensor:
        """The teacher's embeddings [B, D]."""
        if batch.teacher is not None:
            return batch.teacher
        return self._teacher(batch.images if self._view == "same" else batch.clean)

    def _embed(self, cfg: EasyDict, dataset: FaceDataset, device: torch.device, positions: np.ndarray) -> np.ndarray:
        """The teacher's embeddings [N, D] of unflipped images, before there is a batch."""
        if self.embeddings is not None:
            return self.embeddings.rows(positions, np.zeros(len(positions), dtype=bool)).numpy()
        dtype = compute_type(cfg.dtype, device)
        return embed_views(self._teacher, dataset[positions].images, device, dtype, flip=False)[0].cpu().numpy()


class Standalone(Task):
    """The student with trained class centers and no teacher."""

    notes = (
        "no teacher: the keys of the teacher, centers, adaptive_alpha, use_geom_margin and feature_kd are ignored",
    )

    def __init__(self, cfg: EasyDict, device: torch.device) -> None:
        super().__init__(cfg, build_standalone_head(cfg), device)

    def step(self, batch: StepInput) -> HeadOutput:
        with record_function("student"):
            student = self._student(batch.images)
        with record_function("head"):
            return self._head(student, batch.labels)


def _shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DDP where there are several ranks and it has weights to train, else itself."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device.index] if device.type == "cuda" else None
    # Some eight buckets, so that gradients are on their way while backward goes on, in small networks too.
    size = max(1, sum(parameter.nbytes for parameter in module.parameters()) / 8 / 2**20)
    return DistributedDataParallel(
        module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True, bucket_cap_mb=size
    )


def compiles(setting: str, device: torch.device) -> bool:
    """Whether to compile: "on", "off", or "auto": on GPUs, where all that the compiler needs is there."""
    if setting != "auto":
        return setting == "on"
    return device.type == "cuda" and not _missing_compiler(device)


def _missing_compiler(device: torch.device) -> list[str]:
    """What torch.compile needs for this GPU and does not find."""
    compilers = (os.environ.get("CC"), "gcc", "clang", "cc")
    found = {
        "a GPU of compute capability 7.0 or higher": torch.cuda.get_device_capability(device) >= (7, 0),
        "Triton": importlib.util.find_spec("triton") is not None,
        "a C compiler": any(shutil.which(name) for name in compilers if name),
        "Python's headers": Path(sysconfig.get_path("include"), "Python.h").is_file(),
    }
    return [name for name, there in found.items() if not there]
