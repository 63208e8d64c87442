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
from utils.weights import WeightsError, read_state_dicts

__all__ = ["MARGINS", "HeadOutput", "build_head", "build_standalone_head"]

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
    return AdaDistillHead(
        softmax,
        centers=resolve_name(names.CENTERS[cfg.centers])(cfg),
        moving=cfg.centers == "ema",
        adaptive_alpha=cfg.adaptive_alpha,
        geometry=geometry,
        feature_kd=resolve_name(names.FEATURE_KD[cfg.feature_kd]),
        feature_kd_weight=cfg.feature_kd_weight,
    )


def build_standalone_head(cfg: EasyDict) -> TrainedCentersHead:
    """The head for training without a teacher: head(student, labels) -> HeadOutput. Needs cfg.num_classes."""
    return TrainedCentersHead(_build_softmax(cfg), initial_centers(cfg))


def _build_softmax(cfg: EasyDict) -> MarginSoftmax:
    return MarginSoftmax(MARGINS[cfg.loss].from_config(cfg), cfg.s)


def initial_centers(cfg: EasyDict) -> Tensor:
    """Random centers [num_classes, embedding_size]: normal with standard deviation 0.01, seeded with cfg.seed."""
    generator = torch.Generator().manual_seed(cfg.seed)
    centers = torch.randn(cfg.num_classes, cfg.embedding_size, generator=generator)
    return centers.mul_(0.01)  # in place: a second copy would be 4 GB for two million classes


def teacher_centers(cfg: EasyDict) -> Tensor:
    """The class centers [num_classes, embedding_size] from the teacher's header file. Raises WeightsError."""
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
    return kernels[0].float().t().contiguous()
