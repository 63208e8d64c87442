"""Training augmentations, for whole batches on their device.

Crop, rescaling and photometric changes are those of AdaFace (Kim, Jain, Liu, CVPR 2022). The others are in
data/degradations.py. They act in the order in which an image is made: the face is aligned, something hides a part of
it, the lens and the exposure blur it, the sensor has few pixels and noise, and the camera changes colours and writes a
JPEG. Each acts on an image with its own probability. The random numbers are inputs, so that an image of an epoch is
changed in the same way for any number of ranks and workers, and in a resumed run.
"""

import math

import torch
import torch.nn.functional as F
from easydict import EasyDict
from torch import Tensor

from data.counter_random import keys_from, uniform
from data.degradations import Jpeg, defocus, motion_blur, sensor_noise, similarity
from data.images import SIZE

DRAWS = 16  # random numbers per image from the loader; from the last three, the device makes all further numbers
# Which random numbers an augmentation takes. The first of them decides whether it acts on an image, the others how.
# The augmentations act in this order.
NUMBERS = {
    "similarity": slice(13, 18),
    "crop": slice(0, 5),
    "defocus": slice(18, 20),
    "motion_blur": slice(20, 23),
    "low_res": slice(5, 9),
    "noise": slice(23, 26),
    "photometric": slice(9, 13),
    "jpeg": slice(26, 28),
}
_FROM_LOADER, _MADE = 13, 15  # how many numbers come from the loader, and how many are made from its last ones
_GRAY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as Pillow and torchvision have it
_DOWN, _UP = ("nearest", "area", "bilinear", "bicubic"), ("nearest", "bilinear", "bicubic")
_SMALLEST = round(0.2 * SIZE)


def build_augmentation(cfg: EasyDict, device: torch.device) -> "Augmentation | None":
    """The augmentation that the config asks for; None if all its probabilities are 0."""
    probabilities = {name: cfg[f"{name}_augmentation_prob"] for name in NUMBERS}
    return Augmentation(probabilities, device) if any(probabilities.values()) else None


class Augmentation:
    """augment(x, draws): x [B, 3, 112, 112] in [-1, 1], draws [B, DRAWS] in [0, 1) -> x of the same shape and range.

    probabilities: of each augmentation, by its name in NUMBERS, in [0, 1]. Those that are not named are 0.
    """

    def __init__(self, probabilities: dict[str, float], device: torch.device) -> None:
        self.probabilities = probabilities
        changes = {
            "similarity": similarity, "crop": crop_and_pad, "defocus": defocus, "motion_blur": motion_blur,
            "low_res": self._rescale, "noise": sensor_noise, "photometric": photometric, "jpeg": Jpeg(device),
        }  # fmt: skip
        self._changes = {name: changes[name] for name in NUMBERS if probabilities.get(name)}
        if "low_res" in self._changes:
            self._down = torch.stack([resampling(mode, SIZE, size) for mode in _DOWN for size in _sizes()]).to(device)
            self._up = torch.stack([resampling(mode, size, SIZE) for mode in _UP for size in _sizes()]).to(device)

    @torch.no_grad()
    def __call__(self, x: Tensor, draws: Tensor) -> Tensor:
        numbers = torch.cat([draws[:, :_FROM_LOADER], uniform(keys_from(draws[:, _FROM_LOADER:]), _MADE)], 1)
        for name, change in self._changes.items():
            chosen, *values = numbers[:, NUMBERS[name]].unbind(1)
            x = torch.where((chosen < self.probabilities[name])[:, None, None, None], change(x, *values), x)
        return x

    def _rescale(self, x: Tensor, side: Tensor, down: Tensor, up: Tensor) -> Tensor:
        """Resize to 0.2 to 1 times the side of 112 pixels, and back. The resampling mode is drawn for each separately.

        side, down, up: [B] in [0, 1).
        """
        size = (side * len(_sizes())).long()
        small = _resample(x, self._down[(down * len(_DOWN)).long() * len(_sizes()) + size])
        return _resample(small, self._up[(up * len(_UP)).long() * len(_sizes()) + size])


def crop_and_pad(x: Tensor, area: Tensor, ratio: Tensor, top: Tensor, left: Tensor) -> Tensor:
    """Black out all pixels outside a rectangle. area, ratio, top, left: [B] in [0, 1).

    The rectangle has 0.2 to 1 times the area of the image and an aspect ratio of 3/4 to 4/3. If it is higher or wider
    than the image, it is cut to the image.
    """
    height, width = x.shape[2:]
    area = (0.2 + 0.8 * area) * height * width
    root = torch.exp(0.5 * (2 * ratio - 1) * math.log(4 / 3))  # the square root of the aspect ratio
    crop_height = (area.sqrt() / root).round().clamp(max=height)
    crop_width = (area.sqrt() * root).round().clamp(max=width)
    first_row, first_column = (top * (height - crop_height + 1)).floor(), (left * (width - crop_width + 1)).floor()
    rows, columns = torch.arange(height, device=x.device), torch.arange(width, device=x.device)
    inside_rows = (rows >= first_row[:, None]) & (rows < (first_row + crop_height)[:, None])  # [B, H]
    inside_columns = (columns >= first_column[:, None]) & (columns < (first_column + crop_width)[:, None])  # [B, W]
    return torch.where(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], x, -1.0)


def photometric(x: Tensor, brightness: Tensor, contrast: Tensor, saturation: Tensor) -> Tensor:
    """Multiply brightness, contrast and saturation by 0.5 to 1.5 each, and clamp the result to the range of pixels.

    brightness, contrast, saturation: [B] in [0, 1).
    """
    x = (x + 1) / 2
    for factor, without in ((brightness, torch.zeros_like), (contrast, _mean_gray), (saturation, _gray)):
        x = torch.lerp(without(x), x, (0.5 + factor)[:, None, None, None]).clamp(0, 1)
    return 2 * x - 1


def resampling(mode: str, size: int, new_size: int) -> Tensor:
    """The matrix that resamples a line of `size` pixels to `new_size`, in the upper left of a float32 [112, 112].

    It resamples as OpenCV does: pixel centers are at half-integers, and only "area" smooths before it reduces the size.
    """
    if mode == "area":  # new pixel i covers the old ones from i * width to (i + 1) * width
        width = size / new_size
        start, pixel = torch.arange(new_size, dtype=torch.float64)[:, None] * width, torch.arange(size)
        matrix = (torch.minimum(start + width, pixel + 1.0) - torch.maximum(start, pixel.double())).clamp_min(0) / width
    elif mode == "nearest":  # OpenCV's rounding; torch takes the other neighbour if two pixels are equally near
        pixel = (torch.arange(new_size, dtype=torch.float64) * (1 / (new_size / size))).long()
        matrix = F.one_hot(pixel, size)
    else:
        identity = torch.eye(size)[None, :, :, None]  # [1, size channels, size rows, 1 column]
        matrix = F.interpolate(identity, size=(new_size, 1), mode=mode, align_corners=False)[0, :, :, 0].t()
    return F.pad(matrix.float(), (0, SIZE - size, 0, SIZE - new_size))


def _sizes() -> range:
    return range(_SMALLEST, SIZE)


def _resample(x: Tensor, matrices: Tensor) -> Tensor:
    """Resample rows and columns of x [B, 3, 112, 112] by matrices [B, 112, 112], and clamp overshoots to [-1, 1]."""
    return (matrices[:, None] @ x @ matrices[:, None].transpose(2, 3)).clamp(-1, 1)


def _gray(x: Tensor) -> Tensor:
    red, green, blue = (weight * x[:, channel, None] for channel, weight in enumerate(_GRAY))
    return (red + green + blue).expand_as(x)


def _mean_gray(x: Tensor) -> Tensor:
    return _gray(x).mean((2, 3), keepdim=True).expand_as(x)
