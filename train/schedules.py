"""Learning-rate schedules: functions of the fractional epoch, in a table by name."""

import math
from collections.abc import Callable

from easydict import EasyDict

from config import names


def warmup(epoch: float, cfg: EasyDict) -> float | None:
    """((e + 1) / (W + 1))^2 while the fractional epoch e is below W = cfg.warmup_epoch, then None."""
    return ((epoch + 1) / (cfg.warmup_epoch + 1)) ** 2 if epoch < cfg.warmup_epoch else None


def step(epoch: float, cfg: EasyDict) -> float:
    """Divided by 10 for each milestone m with m - 1 <= epoch, as published."""
    return 0.1 ** sum(milestone - 1 <= epoch for milestone in cfg.lr_milestones)


def cosine(epoch: float, cfg: EasyDict) -> float:
    """Half a cosine from 1 after the warm-up to 0 at the last epoch (Loshchilov, Hutter, ICLR 2017, no restarts)."""
    start = max(cfg.warmup_epoch, 0.0)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (epoch - start) / max(cfg.num_epoch - start, 1e-9))))


# Functions of the fractional epoch and the config that give the factor of the learning rate.
LR_SCHEDULES: dict[str, Callable[[float, EasyDict], float]] = names.resolve(names.LR_SCHEDULES)


def learning_rate(epoch: float, total_batch: int, cfg: EasyDict) -> float:
    """The rate at a fractional epoch for `total_batch` images a step: cfg.lr is for 512."""
    factor = warmup(epoch, cfg)
    return cfg.lr * total_batch / 512 * (LR_SCHEDULES[cfg.lr_schedule](epoch, cfg) if factor is None else factor)
