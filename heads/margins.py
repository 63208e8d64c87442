"""Margins: what happens to the target's cosine. None of them knows where the centers come from.

Each is a module called as margin(cos_y, norm, norms, geo) -> (target, margin):
cos_y [B], the cosine between an embedding and its own center, within [-bound, bound]; norm [B], the lengths of the raw
student embeddings; norms [global B], those of all ranks; geo [B], the weighted geometry penalty; target [B], the cosine
with the margin in it; margin [B], what the margin amounts to (radians or cosine), for the log. `bound` is what every
cosine is clamped to.
"""

import math

import torch
from easydict import EasyDict
from torch import Tensor, nn


class Margin(nn.Module):
    """What the margins share: `m`, `bound` and whether the geometry term acts in it."""

    bound = 1.0
    takes_geometry = False
    default_m = 0.0

    def __init__(self, cfg: EasyDict) -> None:
        super().__init__()
        self.m = self.default_m if cfg.m is None else float(cfg.m)


class MLLoss(Margin):
    """No margin: cos_y."""

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        return cos_y, torch.zeros_like(norm)


class CosFace(Margin):
    """cos_y - m (Wang et al., CVPR 2018)."""

    default_m = 0.35

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        return cos_y - self.m, torch.full_like(norm, self.m)


class ArcFace(Margin):
    """cos(theta + m), theta = arccos(cos_y) (Deng et al., CVPR 2019)."""

    default_m = 0.45

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        # cos(theta + m) by the addition theorem. The floor under sin^2 keeps the gradient finite at cos_y = +-1.
        sin_y = (1 - cos_y * cos_y).clamp_min(torch.finfo(cos_y.dtype).eps).sqrt()
        return cos_y * math.cos(self.m) - sin_y * math.sin(self.m), torch.full_like(norm, self.m)


class AdaFace(Margin):
    """A margin that follows image quality, measured by the norm (Kim, Jain, Liu, CVPR 2022), plus the geometry term.

    z = clamp(h * (norm - mu) / (sigma + eps) + geo, -1, 1); target = cos(theta - m z) - (m + m z).
    """

    eps = 1e-3
    bound = 1.0 - 1e-3
    takes_geometry = True
    default_m = 0.4

    def __init__(self, cfg: EasyDict) -> None:
        super().__init__(cfg)
        self.h, self.t_alpha = cfg.h, cfg.t_alpha
        self.register_buffer("batch_mean", torch.full((1,), 20.0))
        self.register_buffer("batch_std", torch.full((1,), 100.0))

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.update_statistics(norms)
        scaled = self.h * (norm.clamp(1e-3, 100) - self.batch_mean) / (self.batch_std + self.eps)
        z = (scaled + geo).clamp(-1, 1)
        theta = (cos_y.arccos() - self.m * z).clamp(self.eps, math.pi - self.eps)
        return theta.cos() - (self.m + self.m * z), self.m + self.m * z

    @torch.no_grad()
    def update_statistics(self, norms: Tensor) -> None:
        """Move the running mean and deviation towards those of the global batch's clamped norms; norms [global B]."""
        finite, norms = norms.isfinite().all(), norms.clamp(1e-3, 100)  # a batch that overflowed leaves them alone
        self.batch_mean.copy_(torch.where(finite, self.batch_mean.lerp(norms.mean(), self.t_alpha), self.batch_mean))
        if len(norms) > 1:
            self.batch_std.copy_(torch.where(finite, self.batch_std.lerp(norms.std(), self.t_alpha), self.batch_std))
