"""Margins: functions that change the cosine of the target class. They do not depend on the centers or the teacher.

A margin is a module that is called as margin(cos_y, norm, norms, geo) -> (target, margin), with

- cos_y [B]: cosine between each embedding and the center of its class, clamped to [-bound, bound];
- norm [B]: lengths of this rank's raw student embeddings, without gradient;
- norms [global B]: the same of all ranks, or of this rank only if `needs_global_norms` is False or in eval mode;
- geo [B]: the geometry-aware term, without gradient;
- target [B]: the target's cosine after the margin is applied;
- margin [B]: the size of the margin, for the log: an angle in radians for ArcFace, else a difference of cosines.

To add a margin, write a subclass of Margin in a new file and name it in MARGINS in config/names.py.
"""

import math

import torch
from easydict import EasyDict
from torch import Tensor, nn


class Margin(nn.Module):
    """Base class of margins."""

    default_m = 0.0  # used if the config has m = None
    bound = 1.0  # all cosines, not only the target's, are clamped to [-bound, bound]
    takes_geometry = False  # whether `geo` has an effect
    needs_global_norms = True  # whether the margin reads the norms of all ranks, `norms`

    def __init__(self, m: float) -> None:
        super().__init__()
        self.m = m

    @classmethod
    def from_config(cls, cfg: EasyDict) -> "Margin":
        """The margin with the config's values. Override it in a subclass that takes more than m."""
        return cls(cls.m_of(cfg))

    @classmethod
    def m_of(cls, cfg: EasyDict) -> float:
        """The config's m, or the margin's own default for m = None."""
        return cls.default_m if cfg.m is None else float(cfg.m)


class MLLoss(Margin):
    """No margin: cos_y."""

    needs_global_norms = False

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        return cos_y, torch.zeros_like(norm)


class CosFace(Margin):
    """cos_y - m (Wang et al., CVPR 2018)."""

    default_m = 0.35
    needs_global_norms = False

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        return cos_y - self.m, torch.full_like(norm, self.m)


class ArcFace(Margin):
    """cos(theta + m), theta = arccos(cos_y) (Deng et al., CVPR 2019)."""

    default_m = 0.45
    needs_global_norms = False

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        # cos(theta + m) = cos(theta) cos(m) - sin(theta) sin(m). The lower limit of sin^2 keeps the gradient finite
        # where cos_y is 1 or -1.
        sin_y = (1 - cos_y * cos_y).clamp_min(torch.finfo(cos_y.dtype).eps).sqrt()
        return cos_y * math.cos(self.m) - sin_y * math.sin(self.m), torch.full_like(norm, self.m)


class AdaFace(Margin):
    """A margin that follows the image quality, measured by the norm n (Kim, Jain, Liu, CVPR 2022), and `geo`.

    z = clamp(h * (clamp(n, 1e-3, 100) - mu) / (sigma + eps) + geo, -1, 1)
    target = cos(clamp(theta - m z, eps, pi - eps)) - (m + m z), theta = arccos(cos_y)

    mu and sigma are running averages of the mean and the unbiased standard deviation of the norms of a global batch:
    new = t_alpha * batch + (1 - t_alpha) * old. They are the buffers `batch_mean` and `batch_std`; published header
    files have these names. In training mode, they are updated before they are used.

    start: mu and sigma before the first batch. While sigma is 0, the values of the batch replace the old ones.
    """

    eps = 1e-3
    bound = 1.0 - 1e-3
    takes_geometry = True
    default_m = 0.4

    def __init__(self, m: float, h: float, t_alpha: float, start: tuple[float, float] = (20.0, 100.0)) -> None:
        super().__init__(m)
        self.h, self.t_alpha = h, t_alpha
        self.register_buffer("batch_mean", torch.full((1,), start[0]))
        self.register_buffer("batch_std", torch.full((1,), start[1]))

    @classmethod
    def from_config(cls, cfg: EasyDict) -> "AdaFace":
        start = (20.0, 100.0) if cfg.norm_statistics_start == "published" else (0.0, 0.0)
        return cls(cls.m_of(cfg), cfg.h, cfg.t_alpha, start)

    def forward(self, cos_y: Tensor, norm: Tensor, norms: Tensor, geo: Tensor) -> tuple[Tensor, Tensor]:
        if self.training:
            self.update_statistics(norms)
        m, eps, mu, sigma = self.m, self.eps, self.batch_mean, self.batch_std
        z = (self.h * (norm.clamp(1e-3, 100) - mu) / (sigma + eps) + geo).clamp(-1, 1)
        theta, margin = cos_y.arccos(), m + m * z
        return (theta - m * z).clamp(eps, math.pi - eps).cos() - margin, margin

    @torch.no_grad()
    def update_statistics(self, norms: Tensor) -> None:
        """Move mu and sigma towards the statistics of the norms [global B].

        sigma does not change if the global batch has only one sample; neither changes if a norm is not finite.
        """
        finite, norms = norms.isfinite().all(), norms.clamp(1e-3, 100)
        mu, sigma = self.batch_mean, self.batch_std
        weight = torch.full_like(sigma, self.t_alpha).masked_fill(sigma == 0, 1)
        mu.copy_(torch.where(finite, mu.lerp(norms.mean(), weight), mu))
        if len(norms) > 1:
            sigma.copy_(torch.where(finite, sigma.lerp(norms.std(), weight), sigma))
