"""The heads with their centers split over the ranks, for millions of classes.

Each rank owns the centers of a range of classes. In a step, all ranks gather the embeddings of student and teacher and
the labels. The owner of a class computes the teacher's confidence, the update of the center and the margin of its
samples. Each rank adds up its own classes for the whole batch; maxima, sums and gradients are then combined over the
ranks. No center is sent to another rank, and no gradient of one.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from heads.centers import similarity, teacher_term, update_weight
from heads.cross_entropy import ClassSums, class_gradients, finish, sum_classes
from heads.head import AdaDistillHead, Head, HeadOutput, MarginSoftmax, TrainedCentersHead, means_of, norms_of
from heads.unit_centers import ROWS_PER_BLOCK, autocast_type, unit_length
from utils.distributed import (
    all_gather_rows,
    max_of_ranks,
    rank,
    rows_of_sum,
    rows_on_rank_0,
    sum_over_ranks,
    world_size,
)
from utils.errors import InputError


def owned_classes(classes: int, number: int | None = None, ranks: int | None = None) -> range:
    """The classes that rank `number` of `ranks` owns (default: this rank): ranges of one size, the last one shorter.

    The same as of torch's DTensor. Raises InputError if a rank has none.
    """
    ranks = world_size() if ranks is None else ranks
    number = rank() if number is None else number
    size = -(-classes // ranks)
    if size * (ranks - 1) >= classes:
        raise InputError(f"{classes} classes cannot be split over {ranks} ranks; use fewer, or set shard_centers=off")
    return range(size * number, min(size * (number + 1), classes))


class _ShardedHead(Head):
    """What is common to heads with the centers of this rank's classes only."""

    owned: range
    classes: int = 0

    @torch.no_grad()
    def set_centers(self, centers: Tensor) -> None:
        expected = [self.classes, self.centers.shape[1]]
        if list(centers.shape) != expected:
            raise ValueError(f"centers: shape {list(centers.shape)} (expected {expected})")
        self.own_centers().copy_(centers[self.owned.start : self.owned.stop])

    def own_centers(self) -> Tensor:
        return self.centers.detach()[: len(self.owned)]

    def full_centers(self) -> Tensor | None:
        return rows_on_rank_0(self.own_centers(), self.classes)


class ShardedAdaDistillHead(_ShardedHead, AdaDistillHead):
    """AdaDistillHead with the centers of this rank's classes only. All ranks have batches of one size.

    centers: raw centers [n + 1, D] of the n `owned_classes`, and one row more: samples of other ranks' classes read and
    write it, so that no operation depends on how many there are. classes: the number of all classes.
    """

    def __init__(self, softmax: MarginSoftmax, centers: Tensor, classes: int, **parts) -> None:
        super().__init__(softmax, centers, **parts)
        self.classes, self.owned = classes, owned_classes(classes)

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> HeadOutput:
        f_s = student.to(self.centers.dtype)
        own_norm = f_s.detach().norm(dim=1)
        with torch.no_grad():
            f_t = teacher.detach().to(f_s.dtype)
            shared = f_s.detach(), f_t, labels, f_t.norm(dim=1) if self.teacher_norms else own_norm
            all_s, all_t, labels, norms = all_gather_rows(*shared)  # of the global batch
            is_own = (labels >= self.owned.start) & (labels < self.owned.stop)
            rows = torch.where(is_own, labels - self.owned.start, len(self.owned))
            conf_t = torch.where(is_own, self._confidence(rows, all_t), 0)
            sum_over_ranks(conf_t)
            cos_st = similarity(all_s, all_t)
            alpha = update_weight(conf_t, cos_st, self.adaptive_alpha)
            if self.training and self.moving:
                self._move_centers(labels, alpha, teacher_term(all_t, alpha), rows)
            penalty = geo = torch.zeros_like(cos_st)
            if self.geometry is not None:
                penalty, geo = self.geometry(conf_t, cos_st, self.epoch)
            batch = _Batch(all_s, norms, rows, is_own, geo)
            unit_centers = self.unit_centers.get(self.centers)[: len(self.owned)]
            losses, gradient, _, margin = _cross_entropy(self.softmax, batch, self.centers, unit_centers, self.classes)
            part = slice(rank() * len(f_s), (rank() + 1) * len(f_s))
        loss = _WithGradient.apply(losses[part].mean(), f_s, rows_of_sum(gradient) / len(f_s))
        loss = loss + self.feature_kd_weight * self.feature_kd(f_s, all_t[part])
        stats = {
            "alpha": alpha, "conf_t": conf_t, "cos_st": cos_st, "margin": margin,
            "geom_penalty": penalty, "geom_penalty_weighted": geo,
        }  # fmt: skip
        stats = {name: value[part] for name, value in stats.items()}
        return HeadOutput(loss, {"loss": loss.detach(), **means_of(stats), **norms_of(own_norm)})


class ShardedTrainedCentersHead(_ShardedHead, TrainedCentersHead):
    """TrainedCentersHead with the centers of this rank's classes only. All ranks have batches of one size.

    centers: raw centers [n, D] of the `owned_classes`; classes: the number of all classes. sample_rate: the part of
    them that takes part in a step, as in Partial FC (An et al., CVPR 2022): the classes of the batch and random others,
    drawn from torch's default generator. Weight decay and momentum act on all centers. The gradient of the centers is
    that of the mean loss of the global batch, so it needs no mean over the ranks.
    """

    def __init__(self, softmax: MarginSoftmax, centers: Tensor, classes: int, sample_rate: float = 1.0) -> None:
        super().__init__(softmax, centers)
        self.classes, self.owned, self.sample_rate = classes, owned_classes(classes), sample_rate

    def forward(self, student: Tensor, labels: Tensor) -> HeadOutput:
        f_s = student.to(self.centers.dtype)
        own_norm = f_s.detach().norm(dim=1)
        with torch.no_grad():
            all_s, labels, norms = all_gather_rows(f_s.detach(), labels, own_norm)
            is_own = (labels >= self.owned.start) & (labels < self.owned.stop)
            rows = torch.where(is_own, labels - self.owned.start, 0)
            centers, chosen = self.centers.detach(), None
            if self.training and self.sample_rate < 1:
                chosen = self._choose(rows, is_own)
                centers, rows = centers[chosen], torch.searchsorted(chosen, rows).clamp_(max=len(chosen) - 1)
            batch = _Batch(all_s, norms, rows, is_own, torch.zeros_like(norms))
            unit_centers = unit_length(centers, autocast_type(centers))
            losses, by_f_s, by_centers, margin = _cross_entropy(
                self.softmax, batch, centers.requires_grad_(), unit_centers, self.classes
            )
            if chosen is not None:
                by_centers = torch.zeros_like(self.centers).index_copy_(0, chosen, by_centers)
            part = slice(rank() * len(f_s), (rank() + 1) * len(f_s))
            gradients = rows_of_sum(by_f_s) / len(f_s), by_centers.div_(len(all_s))
        loss = _WithGradient.apply(losses[part].mean(), f_s, gradients[0], self.centers, gradients[1])
        stats = {"loss": loss.detach(), **means_of({"margin": margin[part]}), **norms_of(own_norm)}
        return HeadOutput(loss, stats)

    def _choose(self, rows: Tensor, is_own: Tensor) -> Tensor:
        """Ascending rows [k] of the centers that take part in a step, with the own ones of the batch, `rows` [B]."""
        n = len(self.centers)
        order = torch.rand(n, device=rows.device).scatter_reduce_(0, rows, 2.0 * is_own, "amax")
        count = max(int(self.sample_rate * n), min(n, len(rows)))
        return order.topk(count, sorted=False).indices.sort().values


class _Batch(NamedTuple):
    """The global batch: raw embeddings [B, D] and their lengths [B]; is_own [B], whether this rank owns the class of a
    sample; rows [B], where its center is then, else any row; geo [B]."""

    f_s: Tensor
    norms: Tensor
    rows: Tensor
    is_own: Tensor
    geo: Tensor


def _cross_entropy(
    softmax: MarginSoftmax, batch: _Batch, centers: Tensor, unit_centers: Tensor, classes: int
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """For the global batch: the cross-entropy [B], the derivatives of its sum, and the margin [B].

    The derivatives are this rank's part of that by f_s [B, D], and that by the centers [n, D] if they are trained.
    centers: of this rank [n, D], or more rows; unit_centers [n, D]: at unit length, in the data type of the products;
    classes: the number of all classes.
    """
    s, bound, is_own = softmax.s, softmax.margin.bound, batch.is_own
    trained = centers.requires_grad
    with torch.enable_grad():
        f_s, w_y = batch.f_s.requires_grad_(), centers.detach()[batch.rows].requires_grad_(trained)
        unit_f_s = F.normalize(f_s, eps=1e-12)
        unit_w_y = F.normalize(w_y, eps=1e-12)
        own_target, margin = softmax.target(batch.norms, batch.norms, unit_f_s, unit_w_y, batch.geo)
    combined = torch.where(is_own, torch.stack([own_target.detach(), margin]), 0)
    sum_over_ranks(combined)
    target, margin = combined
    own_rows = torch.where(is_own, batch.rows, -1)
    with torch.autocast(f_s.device.type, enabled=False):
        unit = unit_f_s.detach()
        sums = sum_classes(unit, target, unit_centers, own_rows, classes, s, bound, softmax.add_block, True)
        sums = _over_ranks(sums)
        losses, by_unit_f_s, by_target = finish(sums, target, s)
        by_f_s, *by_w_y = torch.autograd.grad(
            [unit_f_s, own_target], [f_s, w_y] if trained else [f_s], [by_unit_f_s, torch.where(is_own, by_target, 0)]
        )
        if not trained:
            return losses, by_f_s, None, margin
        by_unit = class_gradients(sums, -by_target, unit, unit_centers, own_rows, s, bound)
        # Through the normalisation: only what is perpendicular to the center changes the cosine.
        by_centers = _perpendicular(by_unit, unit_centers)
        by_centers /= centers.detach().norm(dim=1, keepdim=True).clamp_min(1e-12)
        by_own = torch.where(is_own[:, None], by_w_y[0], 0)
        if by_own.is_cuda:  # there, index_add_ would add in an undefined order
            by_centers.index_put_((batch.rows,), by_own, accumulate=True)
        else:
            by_centers.index_add_(0, batch.rows, by_own)
    return losses, by_f_s, by_centers, margin


def _perpendicular(gradients: Tensor, unit_centers: Tensor) -> Tensor:
    """Each gradient without its part along the center, in place. Both [n, D]."""
    for part, unit in zip(gradients.split(ROWS_PER_BLOCK), unit_centers.split(ROWS_PER_BLOCK), strict=True):
        unit = unit.to(part.dtype)
        part.addcmul_((part * unit).sum(1, keepdim=True), unit, value=-1)
    return gradients


def _over_ranks(sums: ClassSums) -> ClassSums:
    """M and T of all ranks' classes. W stays that of this rank's, relative to the common M."""
    maximum, total, weighted = sums
    if maximum is not None:
        largest = max_of_ranks(maximum)
        rescale = (maximum - largest).exp2()
        maximum, total, weighted = largest, total * rescale, weighted * rescale[:, None]
    sum_over_ranks(total)
    return ClassSums(maximum, total, weighted)


class _WithGradient(torch.autograd.Function):
    """A scalar whose gradients for some tensors are already known. Its backward pass needs no other rank."""

    @staticmethod
    def forward(ctx: FunctionCtx, value: Tensor, *tensors_and_gradients: Tensor) -> Tensor:
        ctx.gradients = tensors_and_gradients[1::2]
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, None  # in place, because those of the centers are large
        return None, *(value for gradient in gradients for value in (gradient.mul_(incoming), None))
