"""Class centers as running averages of teacher embeddings (AdaDistill: Boutros, Struc, Damer, ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import all_gather

FLOOR = 1e-6


def confidence(w_y: Tensor, f_t: Tensor) -> Tensor:
    """conf_t = clamp(cos(w_y, f_t), 1e-6, 1). Centers of the samples' classes, teacher embeddings [B, D] -> [B]."""
    return F.cosine_similarity(w_y, f_t, eps=1e-12).clamp(FLOOR, 1)


def similarity(f_s: Tensor, f_t: Tensor) -> Tensor:
    """cos_st = cos(f_s, f_t). Student and teacher embeddings [B, D] -> [B]."""
    return F.cosine_similarity(f_s, f_t, eps=1e-12)


def update_weight(conf_t: Tensor, cos_st: Tensor, adaptive: bool) -> Tensor:
    """alpha = clamp(cos_st * conf_t, 1e-6, 1), the weight of the old center in the average. [B] -> [B].

    With `adaptive` False (the config's adaptive_alpha), alpha = clamp(cos_st, 1e-6, 1).
    """
    return (cos_st * conf_t if adaptive else cos_st).clamp(FLOOR, 1)


def class_means(values: Tensor, labels: Tensor) -> Tensor:
    """For each row of `values` [B, n], the mean of all rows with the same label. labels [B] -> [B, n].

    Rows with the same label get bit-equal means. All sums are one small matrix product, [B, B] by [B, n]. On GPUs it is
    deterministic, unlike scatter-add, and the host does not wait for the device.
    """
    same = labels[:, None] == labels[None, :]  # [B, B]
    weights = same.to(values.dtype)
    with torch.autocast(values.device.type, enabled=False):
        means = (weights @ values) / weights.sum(1, keepdim=True)
    positions = torch.arange(len(labels), device=labels.device)
    first = torch.where(same, positions, len(labels)).amin(1)  # [B], the first row with the same label
    return means[first]


@torch.no_grad()
def move_centers(centers: Tensor, f_t: Tensor, labels: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """Move the centers in place: w_c <- mean(alpha_i) w_c + mean((1 - alpha_i) hat f_t,i) for each class c.

    The means are over the samples i of class c in the global batch; a class without samples does not move. centers
    [C, D]; f_t [B, D] raw, labels [B] and alpha [B] are this rank's part of the batch. Every rank gathers the global
    batch and does the same arithmetic in the same order, so the centers are bit-equal on all ranks. No center moves if
    a number in the global batch is not finite.

    Returns the labels [global B] and the old centers [global B, D] of these labels.
    """
    pull = (1 - alpha)[:, None] * F.normalize(f_t, eps=1e-12)  # [B, D]
    labels, alpha, pull = all_gather(labels), all_gather(alpha), all_gather(pull)
    values = torch.cat([alpha[:, None], pull], 1)  # [global B, 1 + D]
    means = class_means(values, labels)
    old = centers[labels]
    new = means[:, :1] * old + means[:, 1:]
    centers[labels] = torch.where(values.isfinite().all(), new, old)
    return labels, old
