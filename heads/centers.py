"""Class centers as running averages of teacher embeddings (AdaDistill: Boutros, Struc, Damer, ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import all_gather

FLOOR = 1e-6


def confidences(centers: Tensor, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """conf_t = clamp(cos(w_y, f_t), 1e-6, 1) and cos_st = cos(f_s, f_t); all [B]."""
    conf_t = F.cosine_similarity(centers[labels], teacher, eps=1e-12).clamp(FLOOR, 1)
    return conf_t, F.cosine_similarity(student, teacher, eps=1e-12)


def update_weight(conf_t: Tensor, cos_st: Tensor, adaptive: bool) -> Tensor:
    """alpha, how much of the old center stays: clamp(cos_st * conf_t, 1e-6, 1), or of cos_st alone. [B]."""
    return (cos_st * conf_t if adaptive else cos_st).clamp(FLOOR, 1)


@torch.no_grad()
def move_centers(centers: Tensor, teacher: Tensor, labels: Tensor, alpha: Tensor) -> None:
    """In place, for each class c of the global batch: w_c <- mean(alpha_i) w_c + mean((1 - alpha_i) hat f_t,i).

    centers [C, D]; teacher [B, D] raw, labels [B], alpha [B]: this rank's part of the batch. Every rank gathers the
    whole batch and does the same arithmetic on it in the same order, so the centers stay bit-equal everywhere.
    """
    target = (1 - alpha)[:, None] * F.normalize(teacher, eps=1e-12)
    labels, alpha, target = all_gather(labels), all_gather(alpha), all_gather(target)
    # A sample that overflowed (float16) or came broken from the teacher has no say: 0 * NaN would reach every class.
    finite = alpha.isfinite() & target.isfinite().all(1)
    values = torch.cat([alpha[:, None], target], 1).where(finite[:, None], 0)  # [B, 1 + D]
    # Means over equal labels as one small product, [B, B] by [B, 1 + D]: no host synchronisation, and deterministic on
    # GPUs, which scatter-adds are not. All samples of a class then take the row of its first one.
    same = labels[:, None] == labels[None, :]
    weights = (same & finite).to(alpha.dtype)
    count = weights.sum(1, keepdim=True)
    with torch.autocast(centers.device.type, enabled=False):
        means = (weights @ values) / count.clamp_min(1)
    means[:, :1] = means[:, :1].where(count > 0, 1)  # a class without a finite sample stays where it is
    positions = torch.arange(len(labels), device=labels.device)
    first = torch.where(same, positions, len(labels)).amin(1)
    means = means[first]
    centers[labels] = means[:, :1] * centers[labels] + means[:, 1:]
