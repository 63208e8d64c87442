"""Heads: tables of margins, geometry terms and centers, build_head(cfg), and build_standalone_head(cfg)."""

import torch
from easydict import EasyDict
from torch import Tensor

from heads.feature_kd import FEATURE_KD
from heads.geometry import GEOMETRY
from heads.head import AdaDistillHead, HeadOutput, MarginSoftmax, TrainedCentersHead
from heads.margins import AdaFace, ArcFace, CosFace, Margin, MLLoss
from utils.weights import WeightsError, read_state_dict

__all__ = ["CENTERS", "FEATURE_KD", "GEOMETRY", "MARGINS", "HeadOutput", "build_head", "build_standalone_head"]

# A new margin is one new class (in a file of its own) and one entry here.
MARGINS: dict[str, type[Margin]] = {"AdaFace": AdaFace, "ArcFace": ArcFace, "CosFace": CosFace, "MLLoss": MLLoss}


def _ema_centers(cfg: EasyDict) -> Tensor:
    return 0.01 * _normal(cfg)


def _fixed_centers(cfg: EasyDict) -> Tensor:
    path = cfg.pretrained_teacher_header_path
    if not path:
        raise WeightsError("centers = 'fixed' needs pretrained_teacher_header_path, the teacher's header.pth")
    state = read_state_dict(path)
    wanted = [cfg.embedding_size, cfg.num_classes]
    if "kernel" not in state or list(state["kernel"].shape) != wanted:
        found = f"kernel {list(state['kernel'].shape)}" if "kernel" in state else f"no kernel but {', '.join(state)}"
        raise WeightsError(
            f"{path}: has {found} where kernel [embedding_size, num_classes] = {wanted} is needed: "
            "the header must come from the teacher and the same record set"
        )
    return state["kernel"].float().t().contiguous()


# Where centers come from, and whether they move.
CENTERS = {"ema": (_ema_centers, True), "fixed": (_fixed_centers, False)}


def build_head(cfg: EasyDict) -> AdaDistillHead:
    """The head under a teacher: head(student, teacher, labels) -> loss and stats. Needs cfg.num_classes."""
    make, moving = CENTERS[cfg.centers]
    return AdaDistillHead(cfg, _softmax(cfg), make(cfg), moving)


def build_standalone_head(cfg: EasyDict) -> TrainedCentersHead:
    """The head without a teacher: head(student, labels) -> loss and stats. Needs cfg.num_classes."""
    return TrainedCentersHead(_softmax(cfg), 0.01 * _normal(cfg))


def _softmax(cfg: EasyDict) -> MarginSoftmax:
    return MarginSoftmax(MARGINS[cfg.loss](cfg), cfg.s)


def _normal(cfg: EasyDict) -> Tensor:
    generator = torch.Generator().manual_seed(cfg.seed)
    return torch.randn(cfg.num_classes, cfg.embedding_size, generator=generator)
