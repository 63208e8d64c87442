"""Class centers as running averages of teacher embeddings (AdaDistill: Boutros, Struc, Damer, ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

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

    Rows with the same label get bit-equal means. Time and memory are linear in B, apart from sorting the labels. The
    result is deterministic, and the host does not wait for the device.
    """
    ordered = labels.sort().values
    group = torch.searchsorted(ordered, labels)  # [B], the same number for the same label
    count = torch.searchsorted(ordered, labels, right=True) - group
    sums = torch.zeros_like(values)
    # index_put_ is deterministic on GPUs, index_add_ on CPUs. On the other device, each adds in an undefined order.
    if values.is_cuda:
        sums.index_put_((group,), values, accumulate=True)
    else:
        sums.index_add_(0, group, values)
    return sums[group] / count[:, None]


def teacher_term(f_t: Tensor, alpha: Tensor) -> Tensor:
    """The teacher's part of the update, (1 - alpha) hat f_t. Raw teacher embeddings [B, D], alpha [B] -> [B, D]."""
    return (1 - alpha)[:, None] * F.normalize(f_t, eps=1e-12)


@torch.no_grad()
def move_centers(
    centers: Tensor, labels: Tensor, alpha: Tensor, teacher_terms: Tensor, rows: Tensor | None = None
) -> Tensor:
    """Move the centers in place: w_c <- mean(alpha_i) w_c + mean(teacher_term_i) for each class c.

    The means are over the samples i of class c in the global batch; a class without samples does not move. centers
    [C, D]; labels, alpha [global B] and teacher_terms [global B, D] of all ranks. Every rank does the same arithmetic
    in the same order, so the centers are bit-equal on all ranks. If a number in the batch is not finite, none moves.
    rows [global B]: where the classes of the labels are in `centers`, if not at the labels.

    Returns the old centers [global B, D] of these rows.
    """
    values = torch.cat([alpha[:, None], teacher_terms], 1)  # [global B, 1 + D]
    means = class_means(values, labels)
    rows = labels if rows is None else rows
    old = centers[rows]
    new = means[:, :1] * old + means[:, 1:]
    centers[rows] = torch.where(values.isfinite().all(), new, old)
    return old
