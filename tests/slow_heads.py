"""Heads for tests, and an independent reference: the method in float64, one sample after the other."""

import math

import numpy as np
import torch
from easydict import EasyDict

from config import load_config
from heads import build_head

CLASSES, SIZE = 20, 16
LABELS = torch.tensor([3, 7, 3, 11, 3, 7, 0, 19, 11, 5, 12, 3])


def settings(*overrides: str) -> EasyDict:
    return load_config(
        overrides=["dataset=custom", f"num_classes={CLASSES}", f"embedding_size={SIZE}", *map(str, overrides)]
    )


def batch(seed: int = 0, count: int = len(LABELS)) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Student and teacher embeddings in float64 that resemble each other, and labels with repeats."""
    rng = np.random.default_rng(seed)
    identity = rng.standard_normal((CLASSES, SIZE))[LABELS[:count].numpy()]
    teacher = 5 * (identity + 0.7 * rng.standard_normal((count, SIZE)))
    student = 4 * (identity + 1.2 * rng.standard_normal((count, SIZE)))
    return torch.from_numpy(student), torch.from_numpy(teacher), LABELS[:count]


def float64_head(*overrides: str, epoch: float = 1.0) -> torch.nn.Module:
    """A float64 head whose centers are near the identities of `batch`, as after some training."""
    head = build_head(settings(*overrides)).double()
    rng = np.random.default_rng(0)
    identity = rng.standard_normal((CLASSES, SIZE))
    head.set_centers(torch.from_numpy(identity + 0.5 * np.random.default_rng(1).standard_normal((CLASSES, SIZE))))
    head.set_epoch(epoch)
    return head


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / max(math.sqrt(sum(x * x for x in vector)), 1e-12)


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(sum(x * y for x, y in zip(unit(a), unit(b), strict=True)))


def slow_alphas(centers, student, teacher, labels, adaptive=True) -> list[float]:
    """alpha of each sample: clamp(cos_st * conf_t, 1e-6, 1), or clamp(cos_st, 1e-6, 1)."""
    alphas = []
    for f_s, f_t, y in zip(student, teacher, labels, strict=True):
        conf_t = min(max(cosine(centers[y], f_t), 1e-6), 1.0)
        cos_st = cosine(f_s, f_t)
        alphas.append(min(max(cos_st * conf_t if adaptive else cos_st, 1e-6), 1.0))
    return alphas


def slow_centers(centers, student, teacher, labels, adaptive=True) -> np.ndarray:
    """The moved centers, class by class: w_c <- mean(alpha) w_c + mean((1 - alpha) hat f_t)."""
    alphas = slow_alphas(centers, student, teacher, labels, adaptive)
    moved = centers.copy()
    for c in range(len(centers)):
        rows = [i for i, y in enumerate(labels) if y == c]
        if rows:
            mean_alpha = sum(alphas[i] for i in rows) / len(rows)
            moved[c] = mean_alpha * centers[c] + sum((1 - alphas[i]) * unit(teacher[i]) for i in rows) / len(rows)
    return moved


def slow_means(labels: np.ndarray, stored: np.ndarray, classes: int) -> np.ndarray:
    """The mean unit embedding of each class, in float64, one embedding after the other."""
    sums, counts = np.zeros((classes, stored.shape[2])), np.zeros(classes)
    for label, views in zip(labels, stored.astype(np.float64), strict=True):
        for row in views:
            sums[label] += row / np.sqrt((row * row).sum())
            counts[label] += 1
    return sums / np.maximum(counts, 1)[:, None]


def slow_loss(student, centers, labels, target_of, s=64.0) -> float:
    """The mean cross-entropy, sample by sample. target_of: applies the margin to the target's cosine."""
    losses = []
    for f_s, y in zip(student, labels, strict=True):
        cosines = [cosine(f_s, w) for w in centers]
        cosines[y] = target_of(cosines[y])
        largest = max(cosines)
        losses.append(s * (largest - cosines[y]) + math.log(sum(math.exp(s * (x - largest)) for x in cosines)))
    return sum(losses) / len(losses)


def relative_error(computed: torch.Tensor, expected: np.ndarray) -> float:
    return abs(computed.detach().numpy() - expected).max() / abs(expected).max()
