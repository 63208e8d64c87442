"""Losses between student and teacher embeddings, [B, D] raw -> a scalar: baselines to compare the margin with."""

import torch.nn.functional as F
from torch import Tensor


def none(student: Tensor, teacher: Tensor) -> float:
    """No such loss."""
    return 0.0


def cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """mean(1 - cos_st)."""
    return (1 - F.cosine_similarity(student, teacher, eps=1e-12)).mean()


def l2(student: Tensor, teacher: Tensor) -> Tensor:
    """mean(||hat f_s - hat f_t||^2)."""
    return (F.normalize(student, eps=1e-12) - F.normalize(teacher, eps=1e-12)).square().sum(1).mean()
