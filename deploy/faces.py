"""Image files -> aligned faces: either they are aligned, or a network finds the key points of the face in a photo."""

import os
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from easydict import EasyDict

from backbones import build_landmark_network
from backbones.cvlface_landmarks import BOX, CLASSES, LandmarkNetwork
from backbones.cvlface_landmarks import SIZE as SEEN
from backbones.hub import MissingWeights
from data.alignment import pixels_across, similarity_to_arcface, warp
from data.face_detector import FaceDetector, Found, shrink, to_photo
from data.images import SIZE, ImageError, decode_aligned, decode_rgb
from utils.errors import InputError, describe_error

# Faces with fewer pixels are recognised clearly less often: see "Low resolution" in docs/results.md.
FEWEST_PIXELS = 32
LOWEST_SCORE = 0.5  # of the landmark network: "face" is more probable than "no face"


class FaceError(InputError):
    """A photo without a face that can be used. The message names the file and says what to do."""


class Face(NamedTuple):
    """An aligned face: pixels, uint8 [112, 112, 3] RGB, and in words where they are from."""

    pixels: np.ndarray
    source: str


class LandmarkFinder:
    """photo, uint8 [H, W, 3] RGB -> the one face in it, or none, by CVLFace's landmark network.

    As in CVLFace, the network sees the photo with black borders that make it square.
    """

    name = "CVLFace's landmark network"

    def __init__(self, network: LandmarkNetwork) -> None:
        self._network = network

    @torch.inference_mode()
    def __call__(self, photo: np.ndarray) -> list[Found]:
        small, scale = shrink(photo)
        height, width = small.shape[:2]
        side = max(height, width)
        left, top = (side - width) // 2, (side - height) // 2
        square = np.zeros((side, side, 3), dtype=np.uint8)
        square[top : top + height, left : left + width] = small
        x = (torch.from_numpy(square).permute(2, 0, 1)[None].float() - 127.5) / 127.5
        prediction = self._network.predict(x)[0].double()
        score = float(F.softmax(prediction[BOX : BOX + CLASSES], dim=0)[1])
        # The network sees pixel p of the square at p * (SEEN - 1) / (side - 1); it gives places divided by SEEN.
        points = prediction[BOX + CLASSES :].reshape(5, 2).numpy() * SEEN * (side - 1) / (SEEN - 1)
        return [Found(to_photo(points - (left, top), scale), score)] if score >= LOWEST_SCORE else []


class FaceReader:
    """read(path) -> Face. An image of 112 x 112 pixels is taken as an aligned face, any other one as a photo.

    open_finder: opens what finds the faces in a photo, when the first photo is read; None: photos are refused. largest:
    of several faces in a photo, take the largest one.
    """

    def __init__(self, open_finder: Callable[[], FaceDetector | LandmarkFinder] | None, largest: bool) -> None:
        self._open_finder, self._largest = open_finder, largest

    def read(self, path: str | os.PathLike) -> Face:
        """Raises ImageError if the file cannot be read or decoded, and FaceError if there is no face, if there are
        several, or if it is too small. Other errors are those of what finds the faces, not of this image."""
        try:
            encoded = Path(path).read_bytes()
        except OSError as error:
            raise ImageError(describe_error(error)) from error
        if self._open_finder is None:
            return Face(decode_aligned(encoded, str(path)), "aligned face")
        photo = decode_rgb(encoded, str(path))
        if photo.shape == (SIZE, SIZE, 3):
            return Face(photo, "aligned face")
        return self._align(photo, path)

    @cached_property
    def _find(self) -> FaceDetector | LandmarkFinder:
        return self._open_finder()

    def _align(self, photo: np.ndarray, path: str | os.PathLike) -> Face:
        height, width = photo.shape[:2]
        if min(height, width) < FEWEST_PIXELS:
            raise FaceError(
                f"{path}: {width}x{height} pixels, too small for a photo of a face (at least {FEWEST_PIXELS} per "
                "side); use a larger photo"
            )
        faces = self._find(photo)
        transform = similarity_to_arcface(faces[0].points[None])[0] if faces else np.full((2, 3), np.nan)
        pixels = pixels_across(transform)
        if np.isnan(pixels):  # nothing found, or five points that are all equal
            raise FaceError(
                f"{path}: no face found by {self._find.name}; use a photo in which the face is upright, larger or "
                f"sharper, or align it to {SIZE}x{SIZE} yourself (docs/data.md)"
            )
        if len(faces) > 1 and not self._largest:
            raise FaceError(f"{path}: {len(faces)} faces; cut out the one you mean, or take the largest with --largest")
        if pixels < FEWEST_PIXELS:
            raise FaceError(
                f"{path}: the face is only {pixels:.0f} pixels across, too small to be recognised (at least "
                f"{FEWEST_PIXELS}); use a photo with a larger face"
            )
        others = f", the largest of {len(faces)}" if len(faces) > 1 else ""
        source = f"face of {pixels:.0f} pixels{others}, found by {self._find.name} (score {faces[0].score:.2f})"
        return Face(warp(photo, transform), source)


def build_face_reader(cfg: EasyDict, aligned: bool, detector: str | None, largest: bool) -> FaceReader:
    """What reads the images of a user.

    aligned: refuse photos; detector: the file of YuNet, or None for CVLFace's landmark network, whose weights
    cfg.landmarks_path or cfg.landmarks_repo_id names.
    """
    if aligned:
        return FaceReader(None, largest)
    if detector:
        return FaceReader(lambda: FaceDetector(detector), largest)
    return FaceReader(lambda: _open_landmark_finder(cfg), largest)


def _open_landmark_finder(cfg: EasyDict) -> LandmarkFinder:
    try:
        return LandmarkFinder(build_landmark_network(cfg))
    except MissingWeights as error:
        raise InputError(
            f"{error}. Photos can also be aligned with --detector, and faces that are aligned to {SIZE}x{SIZE} need no "
            "network"
        ) from error
