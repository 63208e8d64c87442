"""The heads: centers, margin, geometry term and cross-entropy put together, as section "method" of the docs reads."""

from pkgutil import resolve_name
from typing import NamedTuple

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

from config import names
from heads.centers import UnitCenters, confidences, move_centers, update_weight
from heads.cross_entropy import block_cross_entropy
from heads.geometry import ramp
from heads.margins import Margin
from utils.distributed import all_gather


class HeadOutput(NamedTuple):
    """loss: a scalar with a gradient; stats: 0-d tensors by name, without one."""

    loss: Tensor
    stats: dict[str, Tensor]


class MarginSoftmax(nn.Module):
    """Cross-entropy over s * cosines, the target's changed by a margin. Knows neither teacher nor center updates."""

    def __init__(self, margin: Margin, s: float) -> None:
        super().__init__()
        self.margin, self.s = margin, s

    def logits(self, student: Tensor, centers: Tensor, labels: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        """student [B, D] raw, centers [C, D] raw, labels [B], geo [B] -> logits [B, C] and the margin [B].

        The product over all classes runs in autocast's type; the target's cosine and all else in the centers' type.
        """
        bound = self.margin.bound
        unit, unit_centers = F.normalize(student, eps=1e-12), F.normalize(centers, eps=1e-12)
        cosines = F.linear(unit, unit_centers).to(centers.dtype).clamp(-bound, bound)  # [B, C]
        target, margin = self.target(student, unit, unit_centers[labels], geo)
        return self.s * cosines.scatter(1, labels[:, None], target[:, None]), margin

    def target(self, student: Tensor, unit: Tensor, own_centers: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        """student [B, D] raw and unit, the unit centers [B, D] of their classes, geo [B] -> target and margin, [B]."""
        bound = self.margin.bound
        norm = student.detach().norm(dim=1)
        cos_y = (unit * own_centers).sum(1).clamp(-bound, bound)
        return self.margin(cos_y, norm, all_gather(norm), geo)

    def forward(self, student: Tensor, centers: Tensor, labels: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        """As `logits`, but the mean cross-entropy in place of the logits: the plain way, with trained centers."""
        logits, margin = self.logits(student, centers, labels, geo)
        return F.cross_entropy(logits, labels), margin

    def over_constants(
        self, student: Tensor, centers: Tensor, unit_centers: Tensor, labels: Tensor, geo: Tensor
    ) -> tuple[Tensor, Tensor]:
        """As `forward`, but by blocks of classes; no gradient for the centers, whose unit ones [C, D] are given."""
        unit = F.normalize(student, eps=1e-12)
        target, margin = self.target(student, unit, F.normalize(centers[labels], eps=1e-12), geo)
        losses = block_cross_entropy(unit, target, unit_centers, labels, self.s, self.margin.bound)
        return losses.mean(), margin


class Head(nn.Module):
    """What every head has: a margin softmax over `centers` [num_classes, embedding_size], and its file's content."""

    centers: Tensor

    def __init__(self, softmax: MarginSoftmax) -> None:
        super().__init__()
        self.softmax = softmax
        self.epoch = 0.0

    @torch.no_grad()
    def set_centers(self, centers: Tensor) -> None:
        """Replace the centers by `centers` [num_classes, embedding_size]. Raises ValueError for another shape."""
        if centers.shape != self.centers.shape:
            raise ValueError(f"centers are {list(centers.shape)} where the head has {list(self.centers.shape)}")
        self.centers.copy_(centers)

    def set_epoch(self, epoch: float) -> None:
        """The fractional epoch, for what warms up."""
        self.epoch = epoch

    def begin_step(self) -> None:
        """What forward passes change from here on can be undone by `end_step`."""

    def end_step(self, undo: Tensor) -> None:
        """Give back what `begin_step` found where `undo`, a bool [] on the device, is true; nothing waits for it."""

    def header(self) -> dict[str, Tensor]:
        """The public layout of header.pth: `kernel` [D, C], and the margin's statistics where it has some."""
        return {"kernel": self.centers.detach().t().contiguous(), **self.softmax.margin.state_dict()}

    def load_header(self, header: dict[str, Tensor]) -> None:
        """The inverse of `header`."""
        self.set_centers(header["kernel"].t())
        self.softmax.margin.load_state_dict({key: value for key, value in header.items() if key != "kernel"})


class AdaDistillHead(Head):
    """Centers that follow the teacher (or stay fixed), under a margin softmax. See docs/method.md.

    centers: [num_classes, embedding_size] buffer, raw. Training mode moves it and the norm statistics; eval mode
    computes the same loss with both as they are.
    """

    def __init__(self, cfg: EasyDict, softmax: MarginSoftmax, centers: Tensor, moving: bool) -> None:
        super().__init__(softmax)
        self.cfg, self.moving = cfg, moving
        takes_geometry = cfg.use_geom_margin and softmax.margin.takes_geometry
        self.geometry = resolve_name(names.GEOMETRY[cfg.geom_margin]) if takes_geometry else None
        self.feature_kd = resolve_name(names.FEATURE_KD[cfg.feature_kd])
        self.register_buffer("centers", centers)
        self.unit_centers = UnitCenters()
        self._before: list[tuple[Tensor, Tensor]] | None = None  # labels and centers that forward passes moved

    def begin_step(self) -> None:
        self._before = []

    @torch.no_grad()
    def end_step(self, undo: Tensor) -> None:
        for labels, before in reversed(self._before):
            self.centers[labels] = torch.where(undo, before, self.centers[labels])
            self.unit_centers.renew(labels)
        self._before = None

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> HeadOutput:
        """student, teacher: raw embeddings [B, D] of this rank; labels: int64 [B]. Loss of this rank's part."""
        student, teacher = student.to(self.centers.dtype), teacher.detach().to(self.centers.dtype)
        with torch.no_grad():
            conf_t, cos_st = confidences(self.centers, student, teacher, labels)
            alpha = update_weight(conf_t, cos_st, self.cfg.adaptive_alpha)
            unit_centers = self.unit_centers.of(self.centers)
            if self.training and self.moving:
                touched, before = move_centers(self.centers, teacher, labels, alpha)
                self.unit_centers.renew(touched)
                if self._before is not None:
                    self._before.append((touched, before))
            penalty = self.geometry(conf_t, cos_st, self.cfg) if self.geometry else torch.zeros_like(cos_st)
            geo = self.cfg.geom_margin_w * ramp(self.epoch, self.cfg.geom_margin_warmup_epoch) * penalty
        loss, margin = self.softmax.over_constants(student, self.centers, unit_centers, labels, geo)
        loss = loss + self.cfg.feature_kd_weight * self.feature_kd(student, teacher)
        stats = {
            "alpha": alpha, "conf_t": conf_t, "cos_st": cos_st, "margin": margin,
            "geom_penalty": penalty, "geom_penalty_weighted": geo,
        }  # fmt: skip
        return HeadOutput(loss, {"loss": loss.detach(), **_means(stats), **_norms(student)})


class TrainedCentersHead(Head):
    """Class centers as trained weights and no teacher: the baseline, and how a teacher of one's own is trained."""

    def __init__(self, softmax: MarginSoftmax, centers: Tensor) -> None:
        super().__init__(softmax)
        self.centers = nn.Parameter(centers)

    def forward(self, student: Tensor, labels: Tensor) -> HeadOutput:
        """student: raw embeddings [B, D] of this rank; labels: int64 [B]."""
        student = student.to(self.centers.dtype)
        loss, margin = self.softmax(student, self.centers, labels, torch.zeros_like(student[:, 0]))
        return HeadOutput(loss, {"loss": loss.detach(), **_means({"margin": margin}), **_norms(student)})


def _means(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in values.items()}


def _norms(student: Tensor) -> dict[str, Tensor]:
    """Mean and population deviation of the raw embeddings' lengths in this rank's part of the batch."""
    norm = student.detach().norm(dim=1)
    return {"norm_mean": norm.mean(), "norm_std": norm.std(correction=0)}
