"""A network that takes raw pixels, and the comparison of its embeddings."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

UNIT_LENGTH = "float32 [N, D], unit length"  # what the metadata of files exported with --normalize say of the output


class OfPixels(nn.Module):
    """Raw RGB pixels [N, 3, 112, 112], float32 from 0 to 255 -> embeddings [N, D] of the network.

    unit_length: make the embeddings unit length; dtype: of the network's weights and of its computations.
    """

    def __init__(self, network: nn.Module, unit_length: bool, dtype: torch.dtype) -> None:
        super().__init__()
        self.network, self.unit_length, self.dtype = network.to(dtype), unit_length, dtype

    def forward(self, pixels: Tensor) -> Tensor:
        embedding = self.network(((pixels - 127.5) * (1 / 127.5)).to(self.dtype)).float()
        return F.normalize(embedding) if self.unit_length else embedding


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """The cosine of each row [N, D] with the same row of the other array, float64 [N]."""
    one, other = one.astype(np.float64), other.astype(np.float64)
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)
