"""The two tasks that the loop can train: a student with a teacher, and a network without a teacher."""

from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict
from torch import Tensor
from torch.profiler import record_function

from backbones import build_backbone, find_teacher
from backbones.cost import describe_cost
from data.class_means import class_means
from data.dataset import FaceDataset
from data.loader import Batch
from data.teacher_cache import TeacherEmbeddings, teacher_identity
from eval.embeddings import embed_views
from heads import HeadOutput, build_head, build_standalone_head
from heads.head import Head
from train import batchnorm, prelu
from train.projection import build_embeddings
from train.sanity import teacher_notes
from train.teachers import build_live_teacher, require_same_weights
from train.wrapping import maybe_compile, missing_for_compiling, share_gradients, should_compile, without_sharing
from utils.distributed import on_rank_0, rank, world_size
from utils.precision import compute_type


class Task:
    """A student and a head. `student` and `head` are bare, for checkpoints; training uses wrapped and compiled ones."""

    notes: tuple[str, ...] = ()  # lines for the log, about loaded weights and about settings without effect
    teacher: str = ""  # the teacher's network, colours and checksum
    ignored: tuple[str, ...] = ()  # beginnings of the names of config keys without effect
    embeddings: TeacherEmbeddings | None = None  # the teacher's embeddings; the loader adds them to each batch

    def __init__(self, cfg: EasyDict, head: Head, device: torch.device) -> None:
        torch.manual_seed(cfg.seed)  # so that the initial weights do not depend on what was built before
        student = build_backbone(cfg, new_last_layer=True)
        self.notes += (f"student: {cfg.network}: {describe_cost(student)}",)
        if cfg.init_from:
            self.notes += (f"initial weights from {cfg.init_from}: {student.loaded}",)
        student = batchnorm.replace_batch_norms(student, cfg.sync_bn)
        compiling = should_compile(cfg.compile, device)
        if device.type == "cpu" and not compiling:
            student = prelu.replace_prelus(student)
        self.student = student.to(device, memory_format=torch.channels_last)
        self.head = head.to(device)
        if head.owned is not None:
            self.notes += (f"the centers of {head.classes:,} classes are split over {world_size()} ranks",)
        shared_head = share_gradients(self.head, device) if head.owned is None else self.head
        self._sharing = share_gradients(self.student, device), shared_head
        self._student, self._head = maybe_compile(self._sharing[0], cfg.compile, device), self._sharing[1]
        if not compiling and cfg.compile == "auto" and device.type == "cuda":
            missing = ", ".join(missing_for_compiling(device))
            self.notes += (f"nothing is compiled: torch.compile needs {missing}",)

    def begin(self) -> None:
        """Do what a new run needs before its first step, and a resumed run does not. Every rank must call it."""

    def forward(self, batch: Batch) -> HeadOutput:
        """Return loss and statistics of this rank's part of a global batch."""
        raise NotImplementedError

    def no_sync(self) -> AbstractContextManager:
        """A context in which gradients are accumulated, but not averaged over the ranks yet."""
        return without_sharing(*self._sharing)


class Distillation(Task):
    """A student with a frozen teacher, which is the live network or a file with its embeddings of the training set."""

    ignored = ("sample_rate",)

    def __init__(self, cfg: EasyDict, dataset: FaceDataset, device: torch.device) -> None:
        self._view, self._centers, self._dataset = cfg.teacher_view, cfg.centers, dataset
        if cfg.teacher_embeddings:
            self.embeddings, self.notes = build_embeddings(cfg, dataset, device, Path(cfg.output))
            self.teacher = self.embeddings.identity
        else:
            release = find_teacher(cfg)
            described = on_rank_0(release.describe)
            require_same_weights(release, described)
            self.teacher = teacher_identity(described)
            self._live_teacher = build_live_teacher(cfg, device, release)
            self._teacher = maybe_compile(self._live_teacher, cfg.compile, device)
            self.notes += (f"teacher: {release.network} from {release.origin}: {self._live_teacher.loaded}",)
        if rank() == 0:  # only rank 0 writes the log
            self.notes += teacher_notes(
                dataset, partial(self._embed, dataset, device, compute_type(cfg.dtype, device)), cfg.seed
            )
        super().__init__(cfg, build_head(cfg), device)
        if cfg.confidence_centers == "mean":  # also if the run is resumed
            self.head.confidence_centers = self.head.centers.clone()
            self._replace_by_class_means(self.head.confidence_centers[: len(self.head.own_centers())])
        if should_compile(cfg.compile, device):
            self.head.softmax.compile_blocks()
        if cfg.use_geom_margin and not self.head.softmax.margin.takes_geometry:
            self.notes += (f"use_geom_margin is ignored: {cfg.loss} has no geometry term (AdaFace has one)",)
        if cfg.sample_rate < 1:
            self.notes += ("sample_rate is ignored: it is for trained centers (train_standalone.py)",)
        if cfg.pretrained_teacher_header_path and cfg.centers != "fixed":
            self.notes += (f"pretrained_teacher_header_path is ignored: centers = {cfg.centers!r} does not need it",)

    def begin(self) -> None:
        if self._centers == "mean":
            self._replace_by_class_means(self.head.own_centers())

    def forward(self, batch: Batch) -> HeadOutput:
        with record_function("student"):
            student = self._student(batch.images)
        with record_function("teacher"):
            teacher = self._teacher_embeddings(batch)
        with record_function("head"):
            return self._head(student, teacher, batch.labels)

    def _replace_by_class_means(self, centers: Tensor) -> None:
        """Replace centers [n, D], of this rank's classes, by the mean embeddings of the classes that have images."""
        means = class_means(self.embeddings, self._dataset, centers.shape[1], self.head.owned)
        centers.copy_(torch.where(means.any(1, keepdim=True), means, centers.cpu()))

    @torch.no_grad()
    def _teacher_embeddings(self, batch: Batch) -> Tensor:
        """The teacher's embeddings of the batch, [B, D]."""
        if batch.teacher is not None:
            return batch.teacher
        return self._teacher(batch.images if self._view == "same" else batch.clean)

    def _embed(
        self, dataset: FaceDataset, device: torch.device, dtype: torch.dtype, positions: np.ndarray
    ) -> np.ndarray:
        """The teacher's embeddings [N, D] of the images at `positions` [N], not mirrored, before training starts.

        Not by the compiled teacher, because it would be compiled for this number of images.
        """
        if self.embeddings is not None:
            return self.embeddings.rows(positions, np.zeros(len(positions), dtype=bool)).numpy()
        return embed_views(self._live_teacher, dataset[positions], device, dtype, flip=False)[0].cpu().numpy()


class Standalone(Task):
    """A network with trained class centers and no teacher."""

    notes = (
        "no teacher: the keys of the teacher, norm_source, centers, confidence_centers, adaptive_alpha, "
        "use_geom_margin and feature_kd are ignored",
    )
    ignored = (
        "teacher", "pretrained_teacher", "norm_source", "centers", "confidence_centers", "adaptive_alpha",
        "use_geom_margin", "geom_margin", "feature_kd",
    )  # fmt: skip

    def __init__(self, cfg: EasyDict, device: torch.device) -> None:
        super().__init__(cfg, build_standalone_head(cfg), device)
        if self.head.owned is not None and should_compile(cfg.compile, device):
            self.head.softmax.compile_blocks()

    def forward(self, batch: Batch) -> HeadOutput:
        with record_function("student"):
            student = self._student(batch.images)
        with record_function("head"):
            return self._head(student, batch.labels)
