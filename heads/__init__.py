"""Heads: from embeddings to the loss. With a teacher, use build_head(cfg); without one, build_standalone_head(cfg).

Only this file and the functions that build a margin or a penalty read the config. What they build takes values.
"""

from pkgutil import resolve_name

import torch
from easydict import EasyDict
from torch import Tensor

from config import names
from heads.geometry import GeometryTerm
from heads.head import AdaDistillHead, HeadOutput, MarginSoftmax, TrainedCentersHead
from heads.margins import Margin
from heads.sharded import ShardedAdaDistillHead, ShardedTrainedCentersHead, owned_classes
from utils.distributed import world_size
from utils.weights import WeightsError, read_state_dicts

__all__ = ["MARGINS", "HeadOutput", "build_head", "build_standalone_head"]

CLASSES_TO_SHARD = 500_000  # shard_centers = "auto" splits the centers over several ranks from here on
ROWS_PER_DRAW = 8192  # random centers drawn at a time; a multiple of 16, so that they are those of a single draw
MARGINS: dict[str, type[Margin]] = names.resolve(names.MARGINS)


def build_head(cfg: EasyDict) -> AdaDistillHead:
    """The head for training with a teacher: head(student, teacher, labels) -> HeadOutput. Needs cfg.num_classes.

    Raises WeightsError if centers = "fixed" and the teacher's header file is missing or does not fit.
    """
    softmax = _build_softmax(cfg)
    geometry = None
    if cfg.use_geom_margin and softmax.margin.takes_geometry:
        penalty = resolve_name(names.GEOMETRY[cfg.geom_margin])(cfg)
        geometry = GeometryTerm(penalty, cfg.geom_margin_w, cfg.geom_margin_warmup_epoch)
    build_centers = resolve_name(names.CENTERS[cfg.centers])
    parts = dict(
        moving=cfg.centers == "ema",
        adaptive_alpha=cfg.adaptive_alpha,
        teacher_norms=cfg.norm_source == "teacher",
        image_share=cfg.image_share,
        geometry=geometry,
        feature_kd=resolve_name(names.FEATURE_KD[cfg.feature_kd]),
        feature_kd_weight=cfg.feature_kd_weight,
    )
    if not _shards_centers(cfg):
        return AdaDistillHead(softmax, build_centers(cfg, range(cfg.num_classes)), **parts)
    centers = build_centers(cfg, owned_classes(cfg.num_classes), more_rows=1)
    return ShardedAdaDistillHead(softmax, centers, cfg.num_classes, **parts)


def build_standalone_head(cfg: EasyDict) -> TrainedCentersHead:
    """The head for training without a teacher: head(student, labels) -> HeadOutput. Needs cfg.num_classes."""
    softmax = _build_softmax(cfg)
    if not _shards_centers(cfg) and cfg.sample_rate == 1:
        return TrainedCentersHead(softmax, initial_centers(cfg, range(cfg.num_classes)))
    centers = initial_centers(cfg, owned_classes(cfg.num_classes))
    return ShardedTrainedCentersHead(softmax, centers, cfg.num_classes, cfg.sample_rate)


def _shards_centers(cfg: EasyDict) -> bool:
    """Whether each rank has the centers of a part of the classes."""
    large = cfg.num_classes >= CLASSES_TO_SHARD and world_size() > 1
    return cfg.shard_centers == "on" or (cfg.shard_centers == "auto" and large)


def _build_softmax(cfg: EasyDict) -> MarginSoftmax:
    return MarginSoftmax(MARGINS[cfg.loss].from_config(cfg), cfg.s)


def initial_centers(cfg: EasyDict, classes: range, more_rows: int = 0) -> Tensor:
    """Random centers [n, embedding_size] of n classes: normal with standard deviation 0.01, seeded with cfg.seed.

    They are the rows `classes` of the centers of all classes, followed by `more_rows` rows of zeros.
    """
    generator = torch.Generator().manual_seed(cfg.seed)
    centers = torch.zeros(len(classes) + more_rows, cfg.embedding_size)
    for start in range(0, classes.stop, ROWS_PER_DRAW):  # not all at once: 4 GB for two million classes
        stop = min(start + ROWS_PER_DRAW, cfg.num_classes)
        drawn = torch.randn(stop - start, cfg.embedding_size, generator=generator)
        first, last = max(start, classes.start), min(stop, classes.stop)
        if first < last:
            centers[first - classes.start : last - classes.start] = drawn[first - start : last - start]
    return centers.mul_(0.01)


def teacher_centers(cfg: EasyDict, classes: range, more_rows: int = 0) -> Tensor:
    """The centers [n, embedding_size] of n classes from the teacher's header file. Raises WeightsError.

    They are followed by `more_rows` rows of zeros.
    """
    path = cfg.pretrained_teacher_header_path
    states = read_state_dicts(path).values()
    kernels = [state["kernel"] for state in states if "kernel" in state]
    expected = [cfg.embedding_size, cfg.num_classes]
    if len(kernels) != 1 or list(kernels[0].shape) != expected:
        found = ", ".join(f"kernel {list(kernel.shape)}" for kernel in kernels)
        raise WeightsError(
            f"{path}: has {found or 'no kernel'} (expected kernel {expected}, that is [embedding_size, num_classes]); "
            "take the header of the teacher that was trained on this record set"
        )
    centers = torch.zeros(len(classes) + more_rows, cfg.embedding_size)
    centers[: len(classes)] = kernels[0][:, classes.start : classes.stop].t()
    return centers
