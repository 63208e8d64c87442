"""The geometry-aware term: geo = w * ramp * P enlarges AdaFace's margin by a penalty P per sample.

A penalty P is a function of conf_t [B] and cos_st [B], where B is the global batch in training. The last functions of
this file, which GEOMETRY in config/names.py names, build one from the config.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

from easydict import EasyDict
from torch import Tensor

Penalty = Callable[[Tensor, Tensor], Tensor]


def adaptive_penalty(conf_t: Tensor, cos_st: Tensor, k: float) -> Tensor:
    """P = k * relu(conf_t - cos_st) * conf_t: large where the teacher is confident and the student lags behind. [B]."""
    return k * (conf_t - cos_st).relu() * conf_t


def progress_penalty(conf_t: Tensor, cos_st: Tensor, k: float) -> Tensor:
    """P = k * relu(conf_t - cos_st) * conf_t * clamp(mean(cos_st), 0, 1), which grows as the student aligns. [B]."""
    return adaptive_penalty(conf_t, cos_st, k) * cos_st.mean().clamp(0, 1)


def confidence_penalty(conf_t: Tensor, cos_st: Tensor, k: float) -> Tensor:
    """P = k * (conf_t - mean(conf_t)): positive where the teacher is confident, else negative; its mean is 0. [B]."""
    return k * (conf_t - conf_t.mean())


def static_penalty(conf_t: Tensor, cos_st: Tensor, k: float, mask: float, baseline: float) -> Tensor:
    """P = relu([cos_st < mask] * clamp(k * (1 - cos_st), 0, 1) - baseline), the method's first version. [B]."""
    distance = (k * (1 - cos_st)).clamp(0, 1)
    return ((cos_st < mask) * distance - baseline).relu()


def ramp(epoch: float, warmup_epoch: float) -> float:
    """min(1, epoch / warmup_epoch), where `epoch` is fractional; 1 if there is no warm-up."""
    return 1.0 if warmup_epoch <= 0 else min(1.0, epoch / warmup_epoch)


class GeometryTerm(NamedTuple):
    """geo = w * ramp * P."""

    penalty: Penalty
    w: float
    warmup_epoch: float

    def __call__(self, conf_t: Tensor, cos_st: Tensor, epoch: float) -> tuple[Tensor, Tensor]:
        """conf_t [B], cos_st [B], fractional epoch -> P [B] and geo [B]."""
        penalty = self.penalty(conf_t, cos_st)
        return penalty, self.w * ramp(epoch, self.warmup_epoch) * penalty


def adaptive(cfg: EasyDict) -> Penalty:
    """The method's penalty, with the config's k."""
    return partial(adaptive_penalty, k=cfg.geom_margin_k)


def progress(cfg: EasyDict) -> Penalty:
    """The method's penalty, scaled by the mean of cos_st over the batch, with the config's k."""
    return partial(progress_penalty, k=cfg.geom_margin_k)


def confidence(cfg: EasyDict) -> Penalty:
    """The penalty that follows the teacher's confidence alone, with the config's k."""
    return partial(confidence_penalty, k=cfg.geom_margin_k)


def static(cfg: EasyDict) -> Penalty:
    """The first version's penalty, with the config's k, mask and baseline."""
    return partial(static_penalty, k=cfg.geom_margin_k, mask=cfg.geom_margin_mask, baseline=cfg.geom_margin_baseline)
