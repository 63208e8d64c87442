"""The two tasks that the loop can train: a student under a teacher, and a network by itself."""

from contextlib import AbstractContextManager, ExitStack

import torch
from easydict import EasyDict
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from backbones import build_backbone, build_teacher
from heads import HeadOutput, build_head, build_standalone_head
from heads.head import Head
from utils.distributed import world_size
from utils.sync_batchnorm import synchronise


class Task:
    """A bare student and head (what checkpoints hold) and, over several ranks, their DDP wrappers (what steps use)."""

    notes: tuple[str, ...] = ()  # what the log says at start of settings that have no effect

    def __init__(self, cfg: EasyDict, head: Head, device: torch.device) -> None:
        student = build_backbone(cfg)
        student = synchronise(student, device) if cfg.sync_bn else student
        self.student = student.to(device, memory_format=torch.channels_last)
        self.head = head.to(device)
        self._student, self._head = _shared(self.student, device), _shared(self.head, device)

    def step(self, images: Tensor, labels: Tensor) -> HeadOutput:
        """images: float [B, 3, 112, 112] in [-1, 1], labels: int64 [B] -> loss and statistics of this rank's part."""
        raise NotImplementedError

    def no_sync(self) -> AbstractContextManager:
        """A context in which gradients are summed up but not yet shared over ranks."""
        stack = ExitStack()
        for module in (self._student, self._head):
            if isinstance(module, DistributedDataParallel):
                stack.enter_context(module.no_sync())
        return stack


class Distillation(Task):
    """The student under the frozen teacher, both on the same view of an image."""

    def __init__(self, cfg: EasyDict, device: torch.device) -> None:
        self._teacher = build_teacher(cfg).to(device, memory_format=torch.channels_last)
        super().__init__(cfg, build_head(cfg), device)
        if cfg.use_geom_margin and not self.head.softmax.margin.takes_geometry:
            self.notes += (f"use_geom_margin is ignored: {cfg.loss} has no geometry term, AdaFace has",)
        if cfg.pretrained_teacher_header_path and cfg.centers == "ema":
            self.notes += ("pretrained_teacher_header_path is ignored: centers = 'ema' start at random",)

    def step(self, images: Tensor, labels: Tensor) -> HeadOutput:
        with torch.no_grad():
            teacher = self._teacher(images)
        return self._head(self._student(images), teacher, labels)


class Standalone(Task):
    """The student with trained class centers and no teacher."""

    notes = (
        "no teacher: the keys of the teacher, centers, adaptive_alpha, use_geom_margin and feature_kd are ignored",
    )

    def __init__(self, cfg: EasyDict, device: torch.device) -> None:
        super().__init__(cfg, build_standalone_head(cfg), device)

    def step(self, images: Tensor, labels: Tensor) -> HeadOutput:
        return self._head(self._student(images), labels)


def _shared(module: nn.Module, device: torch.device) -> nn.Module:
    """The module in DDP where there are several ranks and it has weights to train, else itself."""
    if world_size() == 1 or not any(parameter.requires_grad for parameter in module.parameters()):
        return module
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False, gradient_as_bucket_view=True)
