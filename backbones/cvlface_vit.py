"""The vision transformers of CVLFace, with the key names of the releases; one of them with KP-RPE.

KP-RPE is keypoint relative position encoding (Kim, Su, Liu, Jain, Liu, CVPR 2024). Its buckets of offsets are those of
iRPE's product method (Wu, Peng, Chen, Fu, Chao, ICCV 2021).
"""

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor, nn

CHANNELS = 512
PATCH = 8  # pixels
SIDE = 112 // PATCH  # patches in a row, and rows of patches
BUCKETS = 7  # of the offsets between two patches, in each direction


class Shape(NamedTuple):
    """depth: number of blocks; mlp_ratio: hidden channels of the MLPs, in multiples of CHANNELS; kprpe: has KP-RPE."""

    depth: int
    heads: int
    mlp_ratio: int
    kprpe: bool = False


SHAPES = {
    "cvlface_vit_small": Shape(12, 8, 5),
    "cvlface_vit_base": Shape(24, 16, 3),
    "cvlface_vit_base_kprpe": Shape(24, 16, 3, kprpe=True),
}


class PatchEmbedding(nn.Module):
    """Images [B, 3, 112, 112] -> one token per patch [B, 196, 512], row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, CHANNELS, PATCH, PATCH)

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(x).flatten(2).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention [B, 196, 512] -> [B, 196, 512]; bias [B, heads, 196, 196] is added to the logits."""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(CHANNELS, 3 * CHANNELS, bias=False)
        self.proj = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4).unbind()  # [B, heads, 196, 64]
        bias = None if bias is None else bias.to(q.dtype)  # scaled_dot_product_attention takes one type only
        return self.proj(F.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2))


class MLP(nn.Module):
    """Two linear layers with ReLU6 between them."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(CHANNELS, hidden)
        self.act = nn.ReLU6()
        self.fc2 = nn.Linear(hidden, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.act(self.fc1(x)))


class Block(nn.Module):
    """LayerNorm and attention, then LayerNorm and MLP, each added to its input."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(CHANNELS)
        self.attn = Attention(shape.heads)
        self.norm2 = nn.LayerNorm(CHANNELS)
        self.mlp = MLP(shape.mlp_ratio * CHANNELS)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        x = x + self.attn(self.norm1(x), bias)
        return x + self.mlp(self.norm2(x))


class CVLFaceViT(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size].

    bgr: whether the weights were trained on BGR images. If so, the network first reverses the channels.
    """

    def __init__(self, shape: Shape, embedding_size: int = 512, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.patch_embed = PatchEmbedding()
        self.pos_embed = nn.Parameter(torch.zeros(1, SIDE**2, CHANNELS))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(CHANNELS)
        self.feature = nn.Sequential(
            nn.Linear(SIDE**2 * CHANNELS, CHANNELS, bias=False),
            nn.BatchNorm1d(CHANNELS, eps=2e-5),
            nn.Linear(CHANNELS, embedding_size, bias=False),
            nn.BatchNorm1d(embedding_size, eps=2e-5),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed_patches(x)
        for block in self.blocks:
            x = block(x)
        return self.feature(self.norm(x).flatten(1))

    def embed_patches(self, x: Tensor) -> Tensor:
        """Images -> tokens with their absolute positions [B, 196, 512]."""
        return self.patch_embed(x.flip(1) if self.bgr else x) + self.pos_embed


class CVLFaceKPRPE(CVLFaceViT):
    """A vision transformer whose attention also depends on where five key points are relative to each patch.

    The key points come from `landmark_network`, which is None until it is set: RGB images -> [B, 5, 2], x and y of the
    eyes, the nose and the corners of the mouth, from 0 to 1 over the width and the height of the image.
    """

    landmark_network: nn.Module | None

    def __init__(self, shape: Shape, embedding_size: int = 512, bgr: bool = False) -> None:
        super().__init__(shape, embedding_size, bgr)
        self.heads = shape.heads
        self.keypoint_linear = nn.Linear(10, shape.depth * shape.heads * BUCKETS**2)
        self.register_module("landmark_network", None)
        self.register_buffer("patch_centers", _patch_centers(), persistent=False)  # [196, 1, 2]
        self.register_buffer("entries", _entries(), persistent=False)  # [196 * 196]

    def landmarks(self, x: Tensor) -> Tensor:
        """The key points [B, 5, 2] of the images."""
        return self.landmark_network(x)

    def forward(self, x: Tensor, landmarks: Tensor | None = None) -> Tensor:
        """landmarks: key points [B, 5, 2] of the images; None: find them."""
        landmarks = self.landmarks(x) if landmarks is None else landmarks
        x = self.embed_patches(x)
        differences = (self.patch_centers - landmarks[:, None]).flatten(2)  # [B, 196, 10]
        for number, block in enumerate(self.blocks):
            x = block(x, self._bias(differences, number))
        return self.feature(self.norm(x).flatten(1))

    def _bias(self, differences: Tensor, block: int) -> Tensor:
        """The bias [B, heads, 196, 196] of the logits in a block.

        It is computed block by block, because that of all blocks would take 59 MB per image.
        """
        rows = slice(block * self.heads * BUCKETS**2, (block + 1) * self.heads * BUCKETS**2)
        of_buckets = F.linear(differences, self.keypoint_linear.weight[rows], self.keypoint_linear.bias[rows])
        of_buckets = of_buckets.unflatten(2, (self.heads, -1)).transpose(1, 2)  # [B, heads, 196, 49]
        return of_buckets.flatten(2).index_select(2, self.entries).unflatten(2, (SIDE**2, -1))


def _patch_centers() -> Tensor:
    """x and y of the centers of the patches, float32 [196, 1, 2], from 0 to 1 over the image."""
    centers = (torch.arange(SIDE, device="cpu") + 0.5) / SIDE
    return torch.cartesian_prod(centers, centers).flip(1)[:, None]


def _entries() -> Tensor:
    """For patches i and j, where the bias is among the 49 buckets of each of 196 patches: int64 [196 * 196].

    The bucket belongs to the offset from j to i: 7 buckets for rows times 7 for columns.
    """
    half = BUCKETS // 2
    ratio = 1.9  # offsets up to 1.9 have a bucket of their own, larger ones share buckets by their logarithm

    def bucket(offset: int) -> int:
        if abs(offset) <= ratio:
            return half + offset
        shared = round(ratio + ratio * math.log(abs(offset) / ratio) / math.log(8))
        return half + int(math.copysign(min(shared, 2 * ratio), offset))

    one_axis = torch.tensor([[bucket(i - j) for j in range(SIDE)] for i in range(SIDE)], device="cpu")  # [14, 14]
    rows, columns = one_axis[:, None, :, None], one_axis[None, :, None, :]
    of_patch = torch.arange(SIDE**2, device="cpu")[:, None] * BUCKETS**2
    return (of_patch + (rows * BUCKETS + columns).reshape(SIDE**2, SIDE**2)).flatten()


def build(cfg: EasyDict) -> CVLFaceViT:
    """Build the network cfg.network."""
    shape = SHAPES[cfg.network]
    return (CVLFaceKPRPE if shape.kprpe else CVLFaceViT)(shape, cfg.embedding_size)
