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

from heads.centers import confidence, move_centers, similarity, teacher_term, update_weight
from heads.cross_entropy import ClassSums, class_gradients, finish, sum_classes
from heads.head import AdaDistillHead, HeadOutput, MarginSoftmax, TrainedCentersHead, means_of, norms_of
from utils.distributed import all_gather_rows, max_of_ranks, rank, rows_of_sum, sum_over_ranks, world_size


def classes_of_rank(classes: int, number: int, ranks: int) -> range:
    """The classes that rank `number` of `ranks` owns: ranges whose sizes differ by at most one."""
    return range(classes * number // ranks, classes * (number + 1) // ranks)


class ShardedAdaDistillHead(AdaDistillHead):
    """AdaDistillHead with the centers of this rank's classes only. All ranks have batches of one size.

    centers: raw centers [n, D] of `classes_of_rank`; classes: the number of all classes. In memory there is one more
    row: samples of other ranks' classes read and write it, so that no operation depends on how many there are.
    """

    def __init__(self, softmax, centers: Tensor, classes: int, **parts) -> None:
        super().__init__(softmax, torch.cat([centers, torch.zeros_like(centers[:1])]), **parts)
        self.classes, self.owned = classes, classes_of_rank(classes, rank(), world_size())

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> HeadOutput:
        f_s = student.to(self.centers.dtype)
        own_norm = f_s.detach().norm(dim=1)
        with torch.no_grad():
            shared = f_s.detach(), teacher.detach().to(f_s.dtype), labels, own_norm
            all_s, all_t, labels, norms = all_gather_rows(*shared)  # of the global batch
            is_own = (labels >= self.owned.start) & (labels < self.owned.stop)
            rows = torch.where(is_own, labels - self.owned.start, len(self.owned))
            conf_t = torch.where(is_own, confidence(self.centers[rows], all_t), 0)
            sum_over_ranks(conf_t)
            cos_st = similarity(all_s, all_t)
            alpha = update_weight(conf_t, cos_st, self.adaptive_alpha)
            if self.training and self.moving:
                self._move(labels, rows, alpha, teacher_term(all_t, alpha))
            penalty = geo = torch.zeros_like(cos_st)
            if self.geometry is not None:
                penalty, geo = self.geometry(conf_t, cos_st, self.epoch)
            batch = _Batch(all_s, norms, rows, is_own, geo)
            unit_centers = self.unit_centers.get(self.centers)
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

    def _move(self, labels: Tensor, rows: Tensor, alpha: Tensor, teacher_terms: Tensor) -> None:
        self.unit_centers.get(self.centers)
        old = move_centers(self.centers, labels, alpha, teacher_terms, rows)
        self.unit_centers.update_rows(self.centers, rows)
        if self._moves is not None:
            self._moves.append((rows, old))


class ShardedTrainedCentersHead(TrainedCentersHead):
    """TrainedCentersHead with the centers of this rank's classes only. All ranks have batches of one size.

    centers: raw centers [n, D] of `classes_of_rank`; classes: the number of all classes. The gradient of the centers is
    that of the mean loss of the global batch, so it needs no mean over the ranks.
    """

    def __init__(self, softmax: MarginSoftmax, centers: Tensor, classes: int) -> None:
        super().__init__(softmax, centers)
        self.classes, self.owned = classes, classes_of_rank(classes, rank(), world_size())

    def forward(self, student: Tensor, labels: Tensor) -> HeadOutput:
        f_s = student.to(self.centers.dtype)
        own_norm = f_s.detach().norm(dim=1)
        with torch.no_grad():
            all_s, labels, norms = all_gather_rows(f_s.detach(), labels, own_norm)
            is_own = (labels >= self.owned.start) & (labels < self.owned.stop)
            rows = torch.where(is_own, labels - self.owned.start, 0)
            batch = _Batch(all_s, norms, rows, is_own, torch.zeros_like(norms))
            unit_centers = F.normalize(self.centers, eps=1e-12)
            losses, by_f_s, by_centers, margin = _cross_entropy(
                self.softmax, batch, self.centers, unit_centers, self.classes
            )
            part = slice(rank() * len(f_s), (rank() + 1) * len(f_s))
            gradients = rows_of_sum(by_f_s) / len(f_s), by_centers / len(all_s)
        loss = _WithGradient.apply(losses[part].mean(), f_s, gradients[0], self.centers, gradients[1])
        stats = {"loss": loss.detach(), **means_of({"margin": margin[part]}), **norms_of(own_norm)}
        return HeadOutput(loss, stats)


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
    centers: of this rank [n, D], or more rows; unit_centers: the same at unit length; classes: the number of all
    classes.
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
    owned = unit_centers[: len(classes_of_rank(classes, rank(), world_size()))]
    with torch.autocast(f_s.device.type, enabled=False):
        unit = unit_f_s.detach()
        sums = sum_classes(unit, target, owned, own_rows, classes, s, bound, softmax.add_block, True)
        sums = _over_ranks(sums)
        losses, by_unit_f_s, by_target = finish(sums, target, s)
        by_f_s, *by_w_y = torch.autograd.grad(
            [unit_f_s, own_target], [f_s, w_y] if trained else [f_s], [by_unit_f_s, torch.where(is_own, by_target, 0)]
        )
        if not trained:
            return losses, by_f_s, None, margin
        by_unit = class_gradients(sums, -by_target, unit, owned, own_rows, s, bound)
        # Through the normalisation: only what is perpendicular to the center changes the cosine.
        by_centers = by_unit.addcmul_((by_unit * owned).sum(1, keepdim=True), owned, value=-1)
        by_centers /= centers.norm(dim=1, keepdim=True).clamp_min(1e-12)
        by_centers.index_add_(0, batch.rows, torch.where(is_own[:, None], by_w_y[0], 0))
    return losses, by_f_s, by_centers, margin


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
        ctx.save_for_backward(*tensors_and_gradients[1::2])
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, incoming: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(value for gradient in ctx.saved_tensors for value in (incoming * gradient, None))
