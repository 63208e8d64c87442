"""Learning-rate schedules: functions of the fractional epoch, built from the config."""

import math
from collections.abc import Callable

from easydict import EasyDict

from config import names

Schedule = Callable[[float], float]  # fractional epoch -> factor of the learning rate


def step_decay(cfg: EasyDict) -> Schedule:
    """Divide by 10 for each milestone m with m - 1 <= epoch, as published."""
    milestones = cfg.lr_milestones
    return lambda epoch: 0.1 ** sum(milestone - 1 <= epoch for milestone in milestones)


def cosine(cfg: EasyDict) -> Schedule:
    """Half a cosine from 1 after the warm-up to 0 at the last epoch (Loshchilov, Hutter, ICLR 2017, no restarts)."""
    start, epochs = max(cfg.warmup_epoch, 0.0), cfg.num_epoch
    return lambda epoch: 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / max(epochs - start, 1e-9))))


LR_SCHEDULES: dict[str, Callable[[EasyDict], Schedule]] = names.resolve(names.LR_SCHEDULES)


def build_learning_rate(cfg: EasyDict, total_batch: int) -> Schedule:
    """Return the learning rate as a function of the fractional epoch e, for `total_batch` images per step.

    The peak is cfg.lr for 512 images per step, and proportional to their number. While e < W = cfg.warmup_epoch, the
    peak is multiplied by ((e + 1) / (W + 1))^2, afterwards by the factor of cfg.lr_schedule.
    """
    peak, warmup, schedule = cfg.lr * total_batch / 512, cfg.warmup_epoch, LR_SCHEDULES[cfg.lr_schedule](cfg)

    def learning_rate(epoch: float) -> float:
        return peak * (((epoch + 1) / (warmup + 1)) ** 2 if epoch < warmup else schedule(epoch))

    return learning_rate
