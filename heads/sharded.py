"""The head with its centers split over the ranks, for millions of classes.

Each rank owns the centers of a range of classes. In a step, all ranks gather the embeddings of student and teacher and
the labels. The owner of a class computes the teacher's confidence, the update of the center and the margin of its
samples. Each rank adds up its own classes for the whole batch; maxima, sums and gradients are then combined over the
ranks. No center is sent to another rank.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from heads.centers import confidence, move_centers, similarity, teacher_term, update_weight
from heads.cross_entropy import ClassSums, finish, sum_classes
from heads.head import AdaDistillHead, HeadOutput, means_of, norms_of
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
            losses, gradient, margin = self._cross_entropy(all_s, norms, rows, is_own, geo)
            part = slice(rank() * len(f_s), (rank() + 1) * len(f_s))
        loss = _WithGradient.apply(f_s, losses[part].mean(), rows_of_sum(gradient) / len(f_s))
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

    def _cross_entropy(
        self, f_s: Tensor, norms: Tensor, rows: Tensor, is_own: Tensor, geo: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """For the global batch: the cross-entropy [B], this rank's part of its gradient [B, D], and the margin [B]."""
        softmax, s = self.softmax, self.softmax.s
        with torch.enable_grad():
            leaf = f_s.requires_grad_()
            unit_f_s = F.normalize(leaf, eps=1e-12)
            unit_w_y = F.normalize(self.centers[rows], eps=1e-12)
            own_target, margin = softmax.target(norms, norms, unit_f_s, unit_w_y, geo)
        combined = torch.where(is_own, torch.stack([own_target.detach(), margin]), 0)
        sum_over_ranks(combined)
        target, margin = combined
        unit_centers = self.unit_centers.get(self.centers)[:-1]
        with torch.autocast(f_s.device.type, enabled=False):
            sums = sum_classes(
                unit_f_s.detach(), target, unit_centers, torch.where(is_own, rows, -1), self.classes, s,
                softmax.margin.bound, softmax.add_block, True,
            )  # fmt: skip
            losses, by_f, by_target = finish(_over_ranks(sums), target, s)
            by_target = torch.where(is_own, by_target, 0)
            (gradient,) = torch.autograd.grad([unit_f_s, own_target], leaf, [by_f, by_target])
        return losses, gradient, margin


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
    """A scalar whose gradient for f_s [B, D] is already known. Its backward pass needs no other rank."""

    @staticmethod
    def forward(ctx: FunctionCtx, f_s: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        return value.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, incoming: Tensor) -> tuple[Tensor, None, None]:
        return incoming * ctx.saved_tensors[0], None, None
