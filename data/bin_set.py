"""Verification sets in .bin files: a pickle of (encoded images, is_same)."""

import io
import os
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.image_header import stated_size
from data.images import SIZE, ImageError, decode_rgb, fit
from data.safe_pickle import ForbiddenError, load_lists_of_arrays
from utils.errors import InputError
from utils.file_kinds import describe_other_kind
from utils.files import atomic_write


class BinError(InputError):
    """A .bin file that is broken, is not a verification set, or asks to execute code. The message names the file."""


class VerificationSet(torch.utils.data.Dataset):
    """2P encoded images and P flags. `images[positions]` decodes n images: uint8 [n, 112, 112, 3] RGB.

    is_same: bool [P], whether images 2i and 2i + 1 show the same person. identities: int64 [2P], the identity of each
    image, or None if the set does not name them.
    """

    def __init__(self, path: str, encoded: list, is_same: np.ndarray, identities: np.ndarray | None = None) -> None:
        self.path, self.encoded, self.is_same, self.identities = path, encoded, is_same, identities

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, positions: Sequence[int]) -> Tensor:
        images = [self._image(int(position)) for position in positions]
        return torch.from_numpy(np.stack(images))

    def read(self, position: int) -> bytes:
        """The encoded image at `position`."""
        return bytes(self.encoded[position])

    def _image(self, position: int) -> np.ndarray:
        return fit(decode_rgb(self.encoded[position], f"{self.path}: image {position}"))


def read_bin(path: str | os.PathLike) -> VerificationSet:
    """Read a .bin set without executing anything in it (data/safe_pickle.py). Raises BinError."""
    path = str(path)
    if kind := describe_other_kind(path):
        raise BinError(f"{path}: not a verification set, but {kind}")
    with open(path, "rb") as file:
        data = file.read()
    file = io.BytesIO(data)
    try:
        content = load_lists_of_arrays(file)
        identities = load_lists_of_arrays(file) if file.tell() < len(data) else None
    except ForbiddenError as error:
        raise BinError(f"{path}: refused: the pickle asks for {error}, which no verification set needs") from None
    except Exception as error:  # a broken pickle raises nearly any exception
        reason = f"{type(error).__name__}: {error}"
        raise BinError(f"{path}: broken or cut short ({reason}); fetch it again") from error
    encoded, is_same = _checked(path, content)
    return VerificationSet(path, encoded, is_same, _checked_identities(path, identities, is_same))


def write_bin(
    path: str | os.PathLike,
    encoded: Sequence[bytes],
    is_same: Sequence[bool],
    identities: Sequence[int] | None = None,
) -> None:
    """Write a .bin set that Python 2 and 3 can read, like the public sets. Images 2i and 2i + 1 are pair i.

    encoded: 2P encoded images; is_same: P flags; identities: 2P numbers, one per identity. They follow in a second
    pickle, so that other readers, which read only the first, can still read the set. Raises BinError for other numbers
    of images or identities.
    """
    if len(encoded) != 2 * len(is_same):
        raise BinError(f"{path}: {len(encoded)} images for {len(is_same)} pairs; each pair needs two images")
    is_same = [bool(flag) for flag in is_same]
    if identities is not None:
        identities = [int(identity) for identity in identities]
        _checked_identities(str(path), identities, np.array(is_same))
    with atomic_write(path) as file:
        pickle.dump(([bytes(image) for image in encoded], is_same), file, protocol=2)
        if identities is not None:
            pickle.dump(identities, file, protocol=2)


def _checked(path: str, content: Any) -> tuple[list, np.ndarray]:
    """(encoded images, is_same bool [P]) from the content of the pickle. Raises BinError."""
    lists = (list, tuple, np.ndarray)
    if not (
        isinstance(content, tuple | list) and len(content) == 2 and all(isinstance(part, lists) for part in content)
    ):
        raise BinError(f"{path}: does not contain a pair of lists (images, is_same); is it a verification set?")
    encoded, is_same = (() if isinstance(part, np.ndarray) and part.ndim == 0 else part for part in content)
    # Check this before anything is copied: an array of 10^12 rows of 0 bytes takes no space in the file.
    if len(encoded) != 2 * len(is_same) or not len(encoded):
        raise BinError(f"{path}: {len(encoded)} images and {len(is_same)} flags; each pair needs two images and a flag")
    if not all(isinstance(flag, int | np.bool_ | np.integer) for flag in is_same):
        raise BinError(f"{path}: is_same must be a list of flags (True or False, 1 or 0)")
    encoded = [_bytes_of(path, number, image) for number, image in enumerate(encoded)]
    return encoded, np.array([bool(flag) for flag in is_same])


def _checked_identities(path: str, identities: Any, is_same: np.ndarray) -> np.ndarray | None:
    """The content of the second pickle as int64 [2P]; None if there is none. Raises BinError."""
    if identities is None:
        return None
    if not (
        isinstance(identities, list)
        and len(identities) == 2 * len(is_same)
        and all(isinstance(identity, int) and abs(identity) < 2**63 for identity in identities)
    ):
        raise BinError(f"{path}: what follows the pairs must be a list of identities, a number for each image")
    numbers = np.array(identities, dtype=np.int64)
    wrong = np.flatnonzero((numbers[0::2] == numbers[1::2]) != is_same)
    if len(wrong):
        raise BinError(f"{path}: the identities of pair {wrong[0]} do not agree with its flag {is_same[wrong[0]]}")
    return numbers


def _bytes_of(path: str, number: int, image: Any) -> bytes | bytearray | np.ndarray:
    """An encoded image: bytes, or uint8 [N]."""
    if isinstance(image, bytes | bytearray):
        encoded = image
    elif isinstance(image, np.ndarray) and image.dtype == np.uint8:
        encoded = image.view(np.ndarray).reshape(-1)
    else:
        shown = "ndarray" if isinstance(image, np.ndarray) else type(image).__name__
        raise BinError(f"{path}: image {number} is {shown}, but must be encoded bytes")
    if _is_pixels(image, encoded):
        raise BinError(
            f"{path}: image {number} is raw pixels, which do not say whether they are RGB or BGR; encode the images as "
            'PNG (docs/data.md, "Make your own sets")'
        )
    return encoded


def _is_pixels(image: bytes | bytearray | np.ndarray, encoded: bytes | bytearray | np.ndarray) -> bool:
    """Whether an image is raw pixels: an array with rows and columns, or 112 * 112 * 3 bytes that do not decode."""
    if isinstance(image, np.ndarray) and sum(length > 1 for length in image.shape) > 1:
        return True
    if len(encoded) != SIZE * SIZE * 3 or stated_size(memoryview(encoded)) != (0, 0):
        return False
    try:
        decode_rgb(encoded, "")
    except ImageError:
        return True
    return False
