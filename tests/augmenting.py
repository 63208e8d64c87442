"""Helpers for the tests of augmentations: random numbers by name, images as bytes, reference operations."""

import functools

import cv2
import numpy as np
import torch
from PIL import Image, ImageEnhance

from data.augment import DRAWS, Augmentation
from data.images import to_input

CPU = torch.device("cpu")
KINDS = ("crop", "low_res", "photometric")
FIRST_MADE = dict(similarity=13, defocus=18, motion_blur=20, noise=23, jpeg=26)  # places of the numbers that choose
# The meaning of each random number from the loader. The first of a group decides whether an image is changed, the
# others how.
MEANING = (
    "crop", "area", "ratio", "top", "left", "low_res", "side", "down", "up", "photometric", "brightness", "contrast",
    "saturation",
)  # fmt: skip
SIZES = range(22, 112)  # int(112 * u) for u from 0.2 to 1
INTERPOLATIONS = dict(
    nearest=cv2.INTER_NEAREST, area=cv2.INTER_AREA, linear=cv2.INTER_LINEAR, cubic=cv2.INTER_CUBIC
)  # fmt: skip
DOWN, UP = ("nearest", "area", "linear", "cubic"), ("nearest", "linear", "cubic")
LARGEST = float(np.nextafter(np.float32(1), np.float32(0)))
ENHANCERS = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


def numbers(batch: int = 1, **values: float | np.ndarray) -> torch.Tensor:
    """Draws [batch, DRAWS] that choose every image for every change. values: columns by name; all others are 0.5."""
    draws = torch.full((batch, DRAWS), 0.5)
    for name, value in {**dict.fromkeys(KINDS, 0.0), **values}.items():
        draws[:, MEANING.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return draws


def random_numbers(batch: int, seed: int, **values: float | np.ndarray) -> torch.Tensor:
    """Draws [batch, DRAWS]. values: columns by name; all others are uniform random numbers."""
    draws = torch.rand(batch, DRAWS, generator=torch.Generator().manual_seed(seed))
    for name, value in values.items():
        draws[:, MEANING.index(name)] = torch.as_tensor(value, dtype=torch.float32)
    return draws


@functools.cache
def augmentation(**probabilities: float) -> Augmentation:
    return Augmentation(probabilities, CPU)


def mixed(x: np.ndarray) -> np.ndarray:
    """The hash lowbias32, uint32."""
    x = x ^ (x >> np.uint32(16))
    x = x * np.uint32(0x7FEB352D)
    x = x ^ (x >> np.uint32(15))
    x = x * np.uint32(0x846CA68B)
    return x ^ (x >> np.uint32(16))


def uniform_numbers(draws: np.ndarray, count: int) -> np.ndarray:
    """The numbers that data/counter_random.py makes of float32 [B, N]: float64 [B, count]."""
    key = np.zeros(len(draws), dtype=np.uint32)
    for column in draws.T:
        key = mixed(key ^ np.ascontiguousarray(column, dtype=np.float32).view(np.uint32))
    bits = mixed(key[:, None] ^ mixed(np.arange(count, dtype=np.uint32)))
    return ((bits >> np.uint32(9)).astype(np.float64) + 0.5) / 2**23


def all_numbers(draws: torch.Tensor) -> np.ndarray:
    """All random numbers of an image: 13 from the loader, and 15 that are made from its other three. [B, 28]"""
    draws = draws.numpy()
    return np.concatenate([draws[:, :13], uniform_numbers(draws[:, 13:], 15)], 1)


def is_chosen(draws: torch.Tensor, kind: str, probability: float) -> np.ndarray:
    """Which images an augmentation changes: bool [B]."""
    place = FIRST_MADE[kind] if kind in FIRST_MADE else MEANING.index(kind)
    return all_numbers(draws)[:, place] < probability


def as_input(images: np.ndarray) -> torch.Tensor:
    return to_input(torch.from_numpy(images), None, CPU)


def as_bytes(x: torch.Tensor) -> np.ndarray:
    """Images in units of a byte, not rounded: float64 [B, H, W, 3] from 0 to 255."""
    return 127.5 * x.double().permute(0, 2, 3, 1).numpy() + 127.5


def center_of(index: int, count: int) -> float:
    """The middle of the interval of uniform numbers that select `index` out of `count`."""
    return (index + 0.5) / count


def rectangles(draws: torch.Tensor) -> np.ndarray:
    """top, left, height, width [N, 4] of the pixels that a crop keeps.

    Asserts that they form a rectangle and that all other pixels are black.
    """
    x = torch.zeros(1, 1, 112, 112).expand(len(draws), -1, -1, -1)
    kept = augmentation(crop=1.0)(x, draws)[:, 0]
    assert ((kept == 0) | (kept == -1)).all()
    kept = kept.numpy() == 0
    rows, columns = kept.any(2), kept.any(1)
    assert np.array_equal(kept, rows[:, :, None] & columns[:, None, :])
    for line in (rows, columns):  # without a gap
        assert np.array_equal(112 - line.argmax(1) - line[:, ::-1].argmax(1), line.sum(1))
    return np.stack([rows.argmax(1), columns.argmax(1), rows.sum(1), columns.sum(1)], axis=1)


def by_pillow(image: np.ndarray, factors: dict[str, float]) -> np.ndarray:
    """The image after Pillow's enhancers, in the order of `factors`: float64 [H, W, 3]."""
    picture = Image.fromarray(image)
    for name, factor in factors.items():
        picture = ENHANCERS[name](picture).enhance(factor)
    return np.asarray(picture, dtype=np.float64)
