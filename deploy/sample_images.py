"""Images on which an exported network is compared with the original one."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from data.bin_set import read_bin
from data.images import SIZE


def sample_images(cfg: EasyDict, path: str | None, count: int) -> tuple[Tensor, str]:
    """uint8 RGB images [count, 112, 112, 3], and what they are. A set with fewer images is repeated.

    path: a .bin set; None: the first of cfg.val_targets that exists, else smooth coloured patterns.
    """
    if file := verification_set(cfg, path):
        images = read_bin(file)
        positions = spread(len(images), count)
        return images[np.resize(positions, count)], f"{len(positions)} faces of {file.name}"
    return draw_patterns(count), f"{count} drawn patterns"


def verification_set(cfg: EasyDict, path: str | None) -> Path | None:
    """The .bin set at `path`, or the first of cfg.val_targets that exists."""
    if path:
        return Path(path)
    candidates = (Path(cfg.val_rec, f"{target}.bin") for target in cfg.val_targets)
    return next((file for file in candidates if file.is_file()), None)


def spread(length: int, count: int) -> np.ndarray:
    """At most `count` evenly spaced positions, from 0 to length - 1."""
    return np.linspace(0, length - 1, min(count, length)).astype(int)


def draw_patterns(count: int) -> Tensor:
    """Coloured noise of increasing smoothness, always the same: uint8 [count, 112, 112, 3]."""
    generator = torch.Generator().manual_seed(0)
    sizes = [3 + number % 25 for number in range(count)]
    noise = (torch.rand(1, 3, size, size, generator=generator) for size in sizes)
    drawn = [F.interpolate(small, (SIZE, SIZE), mode="bicubic", align_corners=False) for small in noise]
    return (torch.cat(drawn).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1)
