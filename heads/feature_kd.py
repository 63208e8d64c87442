"""Losses of feature distillation, as baselines for the method: raw embeddings f_s, f_t [B, D] -> a scalar."""

import torch.nn.functional as F
from torch import Tensor


def none(f_s: Tensor, f_t: Tensor) -> float:
    """No feature distillation: 0."""
    return 0.0


def cosine(f_s: Tensor, f_t: Tensor) -> Tensor:
    """mean(1 - cos_st)."""
    return (1 - F.cosine_similarity(f_s, f_t, eps=1e-12)).mean()


def l2(f_s: Tensor, f_t: Tensor) -> Tensor:
    """mean(||hat f_s - hat f_t||^2)."""
    return (F.normalize(f_s, eps=1e-12) - F.normalize(f_t, eps=1e-12)).square().sum(1).mean()
