"""Encoded images to RGB arrays, and batches of them to network input."""

import os
import struct
from collections.abc import Callable, Sequence

import cv2
import numpy as np
import torch
from torch import Tensor

from utils.errors import InputError

SIZE = 112  # pixels a side of an aligned face
MOST_PIXELS = int(os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"])  # of an image; see data/__init__.py
# What lies between an image and a network's input, in words, for files that must fit it.
PREPROCESSING = {"size": SIZE, "colours": "RGB", "scale": "(x - 127.5) / 127.5", "views": ["image", "mirror image"]}


class ImageError(InputError):
    """An image that cannot be decoded or has another size than the networks take; the message names it."""


def decode_rgb(encoded: bytes | memoryview | np.ndarray, name: str) -> np.ndarray:
    """Encoded bytes -> uint8 [H, W, 3] RGB. `name` says in the error which image it was."""
    data = np.frombuffer(encoded, dtype=np.uint8) if not isinstance(encoded, np.ndarray) else encoded
    width, height = _claimed_size(data.data)
    if width * height > MOST_PIXELS:
        raise ImageError(f"{name}: claims to be {width}x{height} pixels, too large; at most {MOST_PIXELS} are decoded")
    try:
        image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB) if data.size else None
    except cv2.error as error:
        if "MAX_IMAGE_PIXELS" in str(error):
            raise ImageError(f"{name}: too large; images of at most {MOST_PIXELS} pixels are decoded") from None
        image = None
    if image is None:
        raise ImageError(f"{name}: {data.size} bytes that decode to no image; replace or remove it")
    return image


def _claimed_size(data: memoryview) -> tuple[int, int]:
    """(width, height) by the header of a JPEG or PNG, (0, 0) of all else: what is too large of these OpenCV refuses.

    For errors that say so, and for programs that imported OpenCV before they could tell it what is too large.
    """
    if data[:8] == b"\x89PNG\r\n\x1a\n" and len(data) >= 24:
        return struct.unpack_from(">II", data, 16)
    at = 2  # of the next segment: 0xFF, its kind, its length in 2 bytes
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data):
        kind = data[at + 1]
        if data[at] != 0xFF or kind == 0xFF:  # what stands between segments is skipped
            at += 1
        elif 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):  # the start of a frame
            height, width = struct.unpack_from(">HH", data, at + 5)
            return width, height
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def decode_aligned(encoded: bytes | memoryview | np.ndarray, name: str) -> np.ndarray:
    """As `decode_rgb`, for a face that must already be aligned: uint8 [112, 112, 3]."""
    image = decode_rgb(encoded, name)
    if image.shape != (SIZE, SIZE, 3):
        raise ImageError(f"{name}: {image.shape[1]}x{image.shape[0]} pixels; faces must be aligned to {SIZE}x{SIZE}")
    return image


def fit(image: np.ndarray) -> np.ndarray:
    """uint8 [H, W, 3] -> [112, 112, 3]: the short side resized to 112 (bicubic), the center cropped."""
    height, width = image.shape[:2]
    if (height, width) == (SIZE, SIZE):
        return image
    short = min(height, width)
    height, width = SIZE * height // short, SIZE * width // short
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
    top, left = (height - SIZE) // 2, (width - SIZE) // 2
    return image[top : top + SIZE, left : left + SIZE]


def encode_png(rgb: np.ndarray) -> bytes:
    """uint8 [H, W, 3] RGB -> a PNG file."""
    return cv2.imencode(".png", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR))[1].tobytes()


def decode_into(images: np.ndarray, encoded: Sequence[np.ndarray], name: Callable[[int], str]) -> None:
    """Decode N aligned faces into `images`, uint8 [N, 112, 112, 3]. `name(row)` is what an error calls an image."""
    for row, data in enumerate(encoded):
        try:
            image = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        except cv2.error:
            image = None
        if image is None or image.shape != images.shape[1:]:
            image = decode_aligned(data, name(row))  # says what is wrong
        images[row] = image


def to_input(images: Tensor, flips: Tensor | None, device: torch.device) -> Tensor:
    """uint8 [B, H, W, 3] RGB, bool [B] -> float32 [B, 3, H, W] in [-1, 1], channels-last, on the device.

    Only bytes are copied to the device; the flip and (x - 127.5) / 127.5 happen there.
    """
    x = images.to(device, non_blocking=True).permute(0, 3, 1, 2)
    if flips is not None:
        x = torch.where(flips.to(device, non_blocking=True)[:, None, None, None], x.flip(3), x)
    return (x.float() - 127.5) / 127.5
