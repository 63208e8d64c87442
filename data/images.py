"""Encoded images to RGB arrays and back, and batches of arrays to network input."""

import os
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from data.image_header import stated_size
from utils.errors import InputError

SIZE = 112  # pixels per side of an aligned face
MAX_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # per image; data/__init__.py sets it
# How an image becomes network input, in words. The description of each file of embeddings contains it.
PREPROCESSING = {"size": SIZE, "colours": "RGB", "scale": "(x - 127.5) / 127.5", "views": ["image", "mirror image"]}


class ImageError(InputError):
    """An image that cannot be decoded, or whose size the networks do not take. The message names it."""


def decode_rgb(encoded: bytes | memoryview | np.ndarray, name: str) -> np.ndarray:
    """Decode an image to uint8 [H, W, 3] RGB. `name` identifies the image in error messages. Raises ImageError."""
    data = np.frombuffer(encoded, dtype=np.uint8) if not isinstance(encoded, np.ndarray) else encoded
    # OpenCV has the same limit, unless the program imported OpenCV before data/__init__.py could set it.
    width, height = stated_size(data.data)
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width}x{height} pixels, too large (at most {MAX_PIXELS} pixels are decoded); shrink it"
        )
    image = _decode(data)
    if image is None:
        raise ImageError(
            f"{name}: its {data.size} bytes are not an image of at most {MAX_PIXELS} pixels; replace or remove it"
        )
    return image


def decode_aligned(encoded: bytes | memoryview | np.ndarray, name: str) -> np.ndarray:
    """Like `decode_rgb`, for a face that must already be aligned: uint8 [112, 112, 3]. Raises ImageError."""
    image = decode_rgb(encoded, name)
    if image.shape != (SIZE, SIZE, 3):
        raise ImageError(
            f"{name}: {image.shape[1]}x{image.shape[0]} pixels; faces must be aligned to {SIZE}x{SIZE} (docs/data.md, "
            '"Align faces")'
        )
    return image


def decode_into(images: np.ndarray, encoded: Sequence[np.ndarray], name: Callable[[int], str]) -> None:
    """Decode N aligned faces into `images`, uint8 [N, 112, 112, 3].

    `name(row)` identifies an image in error messages. Raises ImageError.
    """
    for row, data in enumerate(encoded):
        image = _decode(data)
        if image is None or image.shape != images.shape[1:]:
            image = decode_aligned(data, name(row))  # raises the error that says what is wrong
        images[row] = image


def _decode(data: np.ndarray) -> np.ndarray | None:
    """uint8 [H, W, 3] RGB, or None if OpenCV cannot decode the bytes."""
    try:
        return cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    except cv2.error:
        return None


def encode_png(rgb: np.ndarray) -> bytes:
    """Encode an image, uint8 [H, W, 3] RGB, as PNG."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def fit(image: np.ndarray) -> np.ndarray:
    """Resize the short side to 112 pixels (bicubic) and crop the center: uint8 [H, W, 3] -> [112, 112, 3]."""
    height, width = image.shape[:2]
    if (height, width) == (SIZE, SIZE):
        return image
    short = min(height, width)
    height, width = SIZE * height // short, SIZE * width // short
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return image[top : top + SIZE, left : left + SIZE]


def low_resolution(image: np.ndarray, size: int, shift: tuple[int, int]) -> np.ndarray:
    """An aligned face as a camera with `size` x `size` pixels for it shows it: uint8 [112, 112, 3] -> the same.

    It is scaled down by averaging areas, and up again (bicubic). shift: by how many pixels of the large image, down and
    right, the small pixels are shifted. The face itself stays in place; pixels at the border continue outside.
    """
    down, right = shift
    small = cv2.resize(_shifted(image, down, right), (size, size), interpolation=cv2.INTER_AREA)
    return _shifted(cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC), -down, -right)


def _shifted(image: np.ndarray, down: int, right: int) -> np.ndarray:
    """The part of the image that starts `down` and `right` pixels from its corner, continued at the border."""
    rows, columns = (np.arange(SIZE) + offset for offset in (down, right))
    return image[rows.clip(0, SIZE - 1)[:, None], columns.clip(0, SIZE - 1)]


def to_input(images: Tensor, flips: Tensor | None, device: torch.device) -> Tensor:
    """Network input on `device`: uint8 [B, H, W, 3] RGB -> float32 [B, 3, H, W] in [-1, 1], channels-last.

    flips: bool [B], which images to mirror; None for none of them. Only bytes are copied to the device; the flip and
    (x - 127.5) / 127.5 are computed there.
    """
    x = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    if flips is not None:
        x = torch.where(flips.to(device, non_blocking=True)[:, None, None, None], x.flip(3), x)
    return (x.float() - 127.5) / 127.5
