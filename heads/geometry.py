"""The geometry-aware term: a penalty P per sample that enlarges AdaFace's margin by w * ramp * P."""

from easydict import EasyDict
from torch import Tensor


def adaptive(conf_t: Tensor, cos_st: Tensor, cfg: EasyDict) -> Tensor:
    """P = k * relu(conf_t - cos_st) * conf_t: the teacher is sure and the student not yet there. [B] -> [B]."""
    return cfg.geom_margin_k * (conf_t - cos_st).relu() * conf_t


def static(conf_t: Tensor, cos_st: Tensor, cfg: EasyDict) -> Tensor:
    """P = relu([cos_st < mask] * clamp(k * (1 - cos_st), 0, 1) - baseline): the first version. [B] -> [B]."""
    difference = (cfg.geom_margin_k * (1 - cos_st)).clamp(0, 1)
    return ((cos_st < cfg.geom_margin_mask) * difference - cfg.geom_margin_baseline).relu()


def ramp(epoch: float, warmup_epoch: float) -> float:
    """min(1, epoch / warmup_epoch) of the fractional epoch; 1 where there is no warm-up."""
    return 1.0 if warmup_epoch <= 0 else min(1.0, epoch / warmup_epoch)
