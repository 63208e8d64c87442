"""Class centers as running averages of teacher embeddings (AdaDistill: Boutros, Struc, Damer, ECCV 2024)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import all_gather

FLOOR = 1e-6
_ROWS = 65536  # centers normalised at a time: no second float32 copy of them all


def confidences(centers: Tensor, student: Tensor, teacher: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """conf_t = clamp(cos(w_y, f_t), 1e-6, 1) and cos_st = cos(f_s, f_t); all [B]."""
    conf_t = F.cosine_similarity(centers[labels], teacher, eps=1e-12).clamp(FLOOR, 1)
    return conf_t, F.cosine_similarity(student, teacher, eps=1e-12)


def update_weight(conf_t: Tensor, cos_st: Tensor, adaptive: bool) -> Tensor:
    """alpha, how much of the old center stays: clamp(cos_st * conf_t, 1e-6, 1), or of cos_st alone. [B]."""
    return (cos_st * conf_t if adaptive else cos_st).clamp(FLOOR, 1)


@torch.no_grad()
def move_centers(centers: Tensor, teacher: Tensor, labels: Tensor, alpha: Tensor) -> tuple[Tensor, Tensor]:
    """In place, for each class c of the global batch: w_c <- mean(alpha_i) w_c + mean((1 - alpha_i) hat f_t,i).

    centers [C, D]; teacher [B, D] raw, labels [B], alpha [B]: this rank's part of the batch. Every rank gathers the
    whole batch and does the same arithmetic on it in the same order, so the centers stay bit-equal everywhere.
    A batch with a number that is not finite moves none. Returns the labels [global B], and their centers as they were.
    """
    target = (1 - alpha)[:, None] * F.normalize(teacher, eps=1e-12)
    labels, alpha, target = all_gather(labels), all_gather(alpha), all_gather(target)
    values = torch.cat([alpha[:, None], target], 1)  # [B, 1 + D]
    # Means over equal labels as one small product, [B, B] by [B, 1 + D]: no host synchronisation, and deterministic on
    # GPUs, which scatter-adds are not. All samples of a class then take the row of its first one.
    same = labels[:, None] == labels[None, :]
    weights = same.to(alpha.dtype)
    with torch.autocast(centers.device.type, enabled=False):
        means = (weights @ values) / weights.sum(1, keepdim=True)
    positions = torch.arange(len(labels), device=labels.device)
    first = torch.where(same, positions, len(labels)).amin(1)
    means, before = means[first], centers[labels]
    centers[labels] = torch.where(values.isfinite().all(), means[:, :1] * before + means[:, 1:], before)
    return labels, before


class UnitCenters:
    """The centers at unit length in the type that products run in, kept beside them: derived, and in no file.

    Made anew whenever the centers are another tensor, or were changed otherwise than by a step, or another type is
    asked for; after a step only the touched rows are.
    """

    def __init__(self) -> None:
        self._unit: Tensor | None = None
        self._centers: Tensor | None = None
        self._version = -1

    def of(self, centers: Tensor) -> Tensor:
        """[C, D] in autocast's type where that is on, else in that of `centers` [C, D]."""
        kind = centers.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else centers.dtype
        if self._centers is not centers or self._version != centers._version or self._unit.dtype != dtype:
            with torch.inference_mode(False), torch.no_grad():  # later steps write to it
                self._unit = torch.empty_like(centers, dtype=dtype)
                for rows, unit in zip(centers.split(_ROWS), self._unit.split(_ROWS), strict=True):
                    unit.copy_(F.normalize(rows, eps=1e-12))
            self._centers, self._version = centers, centers._version
        return self._unit

    def renew(self, labels: Tensor) -> None:
        """The centers of `labels` were moved, and no other."""
        self._unit[labels] = F.normalize(self._centers[labels], eps=1e-12).to(self._unit.dtype)
        self._version = self._centers._version
