"""A head with 1,000 centers that are spread as after training, and difficult batches for it."""

import torch
from easydict import EasyDict

from config import load_config
from heads import build_head

CLASSES, SIZE, BATCH = 1000, 24, 16


def settings(*overrides: str) -> EasyDict:
    return load_config(overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", *overrides])


def trained_head(*overrides: str) -> torch.nn.Module:
    """A head with random centers. Ten centers occur twice."""
    head = build_head(settings(*overrides))
    centers = torch.randn(CLASSES, SIZE, generator=torch.Generator().manual_seed(1))
    centers[500:510] = centers[:10]
    head.set_centers(centers)
    head.set_epoch(1.0)
    return head


def batch(seed: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Embeddings of student and teacher near the centers, and labels.

    The labels contain the first and the last class, classes at the edges of blocks, and repeats.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([0, 0, 511, 512, 999, 63, 64, 127, 128, 3, 505, 505, 700, 701, 702, 999])
    centers = trained_head().centers[labels]
    student, teacher = (4 * centers + 2 * torch.randn(BATCH, SIZE, generator=generator) for _ in range(2))
    student[0] = 3 * centers[0]  # on the center of its class
    student[1] = 3 * trained_head().centers[8]  # on a center that two other classes share: beyond AdaFace's bounds
    student[2] = -3 * trained_head().centers[9]
    return student, teacher, labels
