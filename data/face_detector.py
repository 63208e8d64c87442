"""Faces in a photo, found by YuNet (Wu, Peng, Yu, Machine Intelligence Research 2023) in OpenCV's FaceDetectorYN."""

import os
from typing import NamedTuple

import cv2
import numpy as np

from utils.errors import InputError
from utils.file_kinds import describe_other_kind

SIDE = 640  # pixels of the side of the image that the detector sees; the face may have 10 to about 300 of them
SCORE, OVERLAP = 0.9, 0.3  # OpenCV's defaults: the lowest score of a face, and the largest overlap of two boxes


class Found(NamedTuple):
    """A face in a photo: eyes, nose and corners of the mouth, float64 [5, 2], in pixels (x, y), as seen in the photo
    from left to right; and the score of the network that found it, from 0 to 1."""

    points: np.ndarray
    score: float


class FaceDetector:
    """photo, uint8 [H, W, 3] RGB -> the faces in it, the largest first. Raises InputError for a file of another kind.

    path: YuNet as an ONNX file, such as face_detection_yunet_2023mar.onnx of OpenCV's model zoo.
    """

    name = "YuNet"

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = str(path)
        with open(path, "rb"):  # an OSError says what is wrong, unlike OpenCV's error
            pass
        try:
            self._detector = cv2.FaceDetectorYN.create(self._path, "", (SIDE, SIDE), SCORE, OVERLAP)
        except cv2.error as error:
            raise self._refusal(error) from error

    def __call__(self, photo: np.ndarray) -> list[Found]:
        small, scale = shrink(photo)
        # The detector always gets the same size, because some of its files are made for one size only.
        square = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
        square[: small.shape[0], : small.shape[1]] = small[..., ::-1]
        try:
            rows = self._detector.detect(square)[1]  # box, five points, score; None for no face
        except cv2.error as error:
            raise self._refusal(error) from error
        rows = np.empty((0, 15)) if rows is None else rows.astype(np.float64)
        largest = np.argsort(-rows[:, 2] * rows[:, 3], kind="stable")
        return [Found(to_photo(row[4:14].reshape(5, 2), scale), float(row[14])) for row in rows[largest]]

    def _refusal(self, error: cv2.error) -> InputError:
        kind = describe_other_kind(self._path)
        reason = kind if kind and "ONNX" not in kind else " ".join(error.err.split())
        return InputError(
            f"{self._path}: not a YuNet that OpenCV {cv2.__version__} can run ({reason}); name "
            "face_detection_yunet_2023mar.onnx of OpenCV's model zoo"
        )


def shrink(photo: np.ndarray) -> tuple[np.ndarray, float]:
    """The photo with at most SIDE pixels per side, by averaging areas, and the factor by which it was scaled."""
    height, width = photo.shape[:2]
    scale = min(1.0, SIDE / max(height, width))
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return (photo if scale == 1 else cv2.resize(photo, size, interpolation=cv2.INTER_AREA)), scale


def to_photo(points: np.ndarray, scale: float) -> np.ndarray:
    """Points of a photo that `shrink` scaled -> points of the original photo. Pixel (0, 0) has its center at (0, 0)."""
    return (points + 0.5) / scale - 0.5
