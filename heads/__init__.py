"""Heads: tables of margins, geometry terms and centers, build_head(cfg), and build_standalone_head(cfg)."""

from pkgutil import resolve_name

import torch
from easydict import EasyDict
from torch import Tensor

from config import names
from heads.head import AdaDistillHead, HeadOutput, MarginSoftmax, TrainedCentersHead
from heads.margins import Margin
from utils.weights import WeightsError, read_state_dict

__all__ = ["MARGINS", "HeadOutput", "build_head", "build_standalone_head"]

MARGINS: dict[str, type[Margin]] = names.resolve(names.MARGINS)


def initial_centers(cfg: EasyDict) -> Tensor:
    """Random centers [num_classes, embedding_size]: normal, standard deviation 0.01, from cfg.seed."""
    generator = torch.Generator().manual_seed(cfg.seed)
    return 0.01 * torch.randn(cfg.num_classes, cfg.embedding_size, generator=generator)


def teacher_centers(cfg: EasyDict) -> Tensor:
    """The class centers in the teacher's header.pth, [num_classes, embedding_size]. Raises WeightsError."""
    path = cfg.pretrained_teacher_header_path
    state = read_state_dict(path)
    wanted = [cfg.embedding_size, cfg.num_classes]
    if "kernel" not in state or list(state["kernel"].shape) != wanted:
        found = f"kernel {list(state['kernel'].shape)}" if "kernel" in state else f"no kernel but {', '.join(state)}"
        raise WeightsError(
            f"{path}: has {found} where kernel [embedding_size, num_classes] = {wanted} is needed: "
            "the header must come from the teacher and the same record set"
        )
    return state["kernel"].float().t().contiguous()


def build_head(cfg: EasyDict) -> AdaDistillHead:
    """The head under a teacher: head(student, teacher, labels) -> loss and stats. Needs cfg.num_classes."""
    centers = resolve_name(names.CENTERS[cfg.centers])(cfg)
    return AdaDistillHead(cfg, _softmax(cfg), centers, moving=cfg.centers == "ema")


def build_standalone_head(cfg: EasyDict) -> TrainedCentersHead:
    """The head without a teacher: head(student, labels) -> loss and stats. Needs cfg.num_classes."""
    return TrainedCentersHead(_softmax(cfg), initial_centers(cfg))


def _softmax(cfg: EasyDict) -> MarginSoftmax:
    return MarginSoftmax(MARGINS[cfg.loss](cfg), cfg.s)
