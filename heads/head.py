"""The heads: centers, margin, geometry-aware term and cross-entropy, composed as in docs/method.md.

Symbols: f_s and f_t are the embeddings of student and teacher, w_c the center of class c, y the class of an image.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.centers import confidence, move_centers, similarity, teacher_term, update_weight
from heads.cross_entropy import add_block, block_cross_entropy
from heads.geometry import GeometryTerm
from heads.margins import Margin
from heads.unit_centers import UnitCenters
from utils.distributed import all_gather, all_gather_rows, rank


class HeadOutput(NamedTuple):
    """loss: a scalar with gradient; stats: 0-d tensors by name, without gradient."""

    loss: Tensor
    stats: dict[str, Tensor]


class MarginSoftmax(nn.Module):
    """Cross-entropy of s * cosines, with a margin on the target's cosine. It has no teacher and moves no centers."""

    def __init__(self, margin: Margin, s: float) -> None:
        super().__init__()
        self.margin, self.s = margin, s
        self.add_block = add_block

    def compile_blocks(self) -> None:
        """Compile what `by_blocks` does with each block of classes, at its first call."""
        self.add_block = torch.compile(add_block, dynamic=False)

    def forward(self, f_s: Tensor, centers: Tensor, labels: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        """The mean cross-entropy and the margin [B], with gradients for f_s and the centers.

        f_s [B, D] raw, centers [C, D] raw, labels [B], geo [B]. Needs memory for the logits [B, C].
        """
        logits, margin = self.logits(f_s, centers, labels, geo)
        return F.cross_entropy(logits, labels), margin

    def logits(self, f_s: Tensor, centers: Tensor, labels: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        """The logits [B, C] and the margin [B]. The arguments are those of `forward`.

        The product with all centers is in the data type of autocast, everything else in that of the centers.
        """
        bound, norm = self.margin.bound, f_s.detach().norm(dim=1)
        unit_f_s, unit_centers = F.normalize(f_s, eps=1e-12), F.normalize(centers, eps=1e-12)
        cosines = F.linear(unit_f_s, unit_centers).to(centers.dtype).clamp(-bound, bound)  # [B, C]
        target, margin = self.target(norm, self.global_norms(norm), unit_f_s, unit_centers[labels], geo)
        return self.s * cosines.scatter(1, labels[:, None], target[:, None]), margin

    def by_blocks(
        self,
        f_s: Tensor,
        norm: Tensor,
        norms: Tensor,
        centers: Tensor,
        unit_centers: Tensor,
        labels: Tensor,
        geo: Tensor,
        w_y: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Like `forward`, but by blocks of classes and without a gradient for the centers.

        norm, norms: see `target`; unit_centers [C, D]: the centers at unit length, in the data type of the products;
        w_y [B, D]: takes the place of the center of each sample's own class.
        """
        unit_f_s = F.normalize(f_s, eps=1e-12)
        w_y = centers[labels] if w_y is None else w_y
        target, margin = self.target(norm, norms, unit_f_s, F.normalize(w_y, eps=1e-12), geo)
        losses = block_cross_entropy(
            unit_f_s, target, unit_centers, labels, self.s, self.margin.bound, self.add_block
        )  # [B]
        return losses.mean(), margin

    def target(
        self, norm: Tensor, norms: Tensor, unit_f_s: Tensor, unit_w_y: Tensor, geo: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The target's cosine with the margin in it [B], and the margin [B].

        norm [B]: lengths of the raw embeddings; norms [global B]: see `global_norms`; unit_f_s [B, D]; unit_w_y [B, D],
        the unit center of each sample's class; geo [B].
        """
        bound = self.margin.bound
        cos_y = (unit_f_s * unit_w_y).sum(1).clamp(-bound, bound)
        return self.margin(cos_y, norm, norms, geo)

    def global_norms(self, norm: Tensor) -> Tensor:
        """The lengths of the raw embeddings of all ranks [global B], from those of this rank, `norm` [B].

        In eval mode, or if the margin does not need them, only those of this rank.
        """
        return all_gather(norm) if self.training and self.margin.needs_global_norms else norm


class Head(nn.Module):
    """Base class of heads: a margin softmax, `centers` [C, D], and the content of the header file.

    classes: the number of all classes; owned: those whose centers this rank has, or None for all.
    """

    centers: Tensor
    owned: range | None = None

    @property
    def classes(self) -> int:
        return len(self.centers)

    def __init__(self, softmax: MarginSoftmax) -> None:
        super().__init__()
        self.softmax = softmax
        self.epoch = 0.0

    @torch.no_grad()
    def set_centers(self, centers: Tensor) -> None:
        """Replace the centers by `centers` [C, D]. Raises ValueError for another shape."""
        if centers.shape != self.centers.shape:
            raise ValueError(f"centers: shape {list(centers.shape)} (expected {list(self.centers.shape)})")
        self.centers.copy_(centers)

    def own_centers(self) -> Tensor:
        """The centers that this rank has, without gradient: a view, which may be written to."""
        return self.centers.detach()

    def full_centers(self) -> Tensor | None:
        """All centers [C, D] on the CPU of rank 0; None on the other ranks. Every rank must call it."""
        return self.centers.detach().cpu() if rank() == 0 else None

    def set_epoch(self, epoch: float) -> None:
        """Set the fractional epoch, for the warm-up of the geometry-aware term."""
        self.epoch = epoch

    def begin_step(self) -> None:
        """Start to record the changes of forward passes, so that `end_step` can undo them."""

    def end_step(self, undo: Tensor) -> None:
        """Undo the changes of centers since `begin_step` if `undo` (bool [], on the device). The host never waits."""

    def header(self) -> dict[str, Tensor]:
        """The public layout of header.pth: `kernel` [D, C], and the margin's statistics if it has any.

        The kernel is a view of the centers, because a transposed copy would need as much memory again. A head with the
        centers of one rank leaves it out.
        """
        kernel = {"kernel": self.centers.detach().t()} if self.owned is None else {}
        return {**kernel, **self.softmax.margin.state_dict()}

    def load_header(self, header: dict[str, Tensor]) -> None:
        """Load a header, of a whole or a sharded head. Without a kernel, the centers stay as they are."""
        if "kernel" in header:
            self.set_centers(header["kernel"].t())
        self.softmax.margin.load_state_dict({key: value for key, value in header.items() if key != "kernel"})


class AdaDistillHead(Head):
    """A margin softmax whose centers follow the teacher's embeddings, or stay fixed.

    centers: raw centers [C, D]; moving: whether training moves them; adaptive_alpha: see `update_weight`; geometry: the
    geometry-aware term, or None; feature_kd: a function of f_s and f_t, whose value times feature_kd_weight is added to
    the loss; teacher_norms: whether the margin gets the norms of the teacher's raw embeddings. Eval mode computes the
    same loss, but changes neither centers nor norm statistics.

    conf_t is measured with the centers, or with `confidence_centers`, of the same shape, if they are set. No checkpoint
    has them.
    """

    def __init__(
        self,
        softmax: MarginSoftmax,
        centers: Tensor,
        *,
        moving: bool,
        adaptive_alpha: bool,
        geometry: GeometryTerm | None,
        feature_kd: Callable[[Tensor, Tensor], Tensor | float],
        feature_kd_weight: float,
        teacher_norms: bool = False,
        image_share: float = 0.0,
    ) -> None:
        super().__init__(softmax)
        self.moving, self.adaptive_alpha, self.geometry = moving, adaptive_alpha, geometry
        self.feature_kd, self.feature_kd_weight = feature_kd, feature_kd_weight
        self.teacher_norms, self.image_share = teacher_norms, image_share
        self.register_buffer("centers", centers)
        self.register_buffer("confidence_centers", None, persistent=False)
        self.unit_centers = UnitCenters()
        self._moves: list[tuple[Tensor, Tensor]] | None = None  # rows and their old centers

    def forward(self, student: Tensor, teacher: Tensor, labels: Tensor) -> HeadOutput:
        """The loss and statistics of this rank's part of the batch.

        student, teacher: raw embeddings [B, D], of any floating type; labels: int64 [B].
        """
        f_s, f_t = student.to(self.centers.dtype), teacher.detach().to(self.centers.dtype)
        own_norm = f_s.detach().norm(dim=1)  # [B]
        norm = f_t.norm(dim=1) if self.teacher_norms else own_norm  # [B], for the margin
        with torch.no_grad():
            conf_t = self._confidence(labels, f_t)  # [B], like cos_st, alpha, penalty and geo
            cos_st = similarity(f_s, f_t)
            alpha = update_weight(conf_t, cos_st, self.adaptive_alpha)
            if self.training and self.moving:
                # One collective for everything that the ranks share.
                *update, norms, all_conf_t, all_cos_st = all_gather_rows(
                    labels, alpha, teacher_term(f_t, alpha), norm, conf_t, cos_st
                )
                self._move_centers(*update)
            elif self.training and (self.softmax.margin.needs_global_norms or self.geometry is not None):
                norms, all_conf_t, all_cos_st = all_gather_rows(norm, conf_t, cos_st)
            else:
                norms, all_conf_t, all_cos_st = norm, conf_t, cos_st
            penalty = geo = torch.zeros_like(cos_st)
            if self.geometry is not None:
                first = rank() * len(norm) if len(norms) > len(norm) else 0
                terms = self.geometry(all_conf_t, all_cos_st, self.epoch)
                penalty, geo = (term[first : first + len(norm)] for term in terms)
        unit_centers = self.unit_centers.get(self.centers)  # [C, D]
        aims = self._aims(labels, f_t) if self.image_share else None
        loss, margin = self.softmax.by_blocks(f_s, norm, norms, self.centers, unit_centers, labels, geo, aims)
        loss = loss + self.feature_kd_weight * self.feature_kd(f_s, f_t)
        stats = {
            "alpha": alpha, "conf_t": conf_t, "cos_st": cos_st, "margin": margin,
            "geom_penalty": penalty, "geom_penalty_weighted": geo,
        }  # fmt: skip
        return HeadOutput(loss, {"loss": loss.detach(), **means_of(stats), **norms_of(own_norm)})

    def _confidence(self, rows: Tensor, f_t: Tensor) -> Tensor:
        centers = self.centers if self.confidence_centers is None else self.confidence_centers
        return confidence(centers[rows], f_t)

    def _aims(self, rows: Tensor, f_t: Tensor) -> Tensor:
        """What takes the place of the own center: between it and the teacher's embedding of the image. [B, D]."""
        return F.normalize(self.centers[rows], eps=1e-12).lerp(F.normalize(f_t, eps=1e-12), self.image_share)

    def _move_centers(self, labels: Tensor, alpha: Tensor, teacher_terms: Tensor, rows: Tensor | None = None) -> None:
        """Move the centers of `labels` [global B], which are the `rows` [global B] of the centers; None: the same."""
        rows = labels if rows is None else rows
        self.unit_centers.get(self.centers)  # computes all rows if needed; after that, only moved rows are updated
        old = move_centers(self.centers, labels, alpha, teacher_terms, rows)
        self.unit_centers.update_rows(self.centers, rows)
        if self._moves is not None:
            self._moves.append((rows, old))

    def begin_step(self) -> None:
        self._moves = []

    @torch.no_grad()
    def end_step(self, undo: Tensor) -> None:
        for rows, old in reversed(self._moves):
            self.centers[rows] = torch.where(undo, old, self.centers[rows])
            self.unit_centers.update_rows(self.centers, rows)
        self._moves = None


class TrainedCentersHead(Head):
    """A margin softmax whose centers are trained weights, without a teacher: the baseline, and to train a teacher."""

    def __init__(self, softmax: MarginSoftmax, centers: Tensor) -> None:
        super().__init__(softmax)
        self.centers = nn.Parameter(centers)

    def forward(self, student: Tensor, labels: Tensor) -> HeadOutput:
        """The loss and statistics of this rank's part of the batch. student: raw [B, D]; labels: int64 [B]."""
        f_s = student.to(self.centers.dtype)
        loss, margin = self.softmax(f_s, self.centers, labels, torch.zeros_like(f_s[:, 0]))
        return HeadOutput(
            loss, {"loss": loss.detach(), **means_of({"margin": margin}), **norms_of(f_s.detach().norm(dim=1))}
        )


def means_of(values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().mean() for name, value in values.items()}


def norms_of(norm: Tensor) -> dict[str, Tensor]:
    """Mean and population standard deviation of the lengths of this rank's raw embeddings, [B]."""
    return {"norm_mean": norm.mean(), "norm_std": norm.std(correction=0)}
