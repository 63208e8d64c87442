"""Alignment of a face by five key points, as InsightFace does it."""

import cv2
import numpy as np

from data.images import SIZE

# Eyes, nose and corners of the mouth in a face aligned for ArcFace, in pixels (x, y).
ARCFACE_POINTS = np.array(
    [(38.2946, 51.6963), (73.5318, 51.5014), (56.0252, 71.7366), (41.5493, 92.3655), (70.7299, 92.2041)]
)
# In square pixels. A face whose eyes are 10 pixels apart has about 770; five equal points have 1e-11 by rounding.
_MIN_COVARIANCE = 1e-6


def similarity_to_arcface(points: np.ndarray) -> np.ndarray:
    """The similarity transforms (rotation, scale, shift) that map five points as closely as possible to ARCFACE_POINTS.

    points: float64 [N, 5, 2]. Returns matrices, float64 [N, 2, 3]; NaN for points that are all equal or not finite.

    This is the least-squares solution of Umeyama, "Least-squares estimation of transformation parameters between two
    point patterns", 1991, for the plane. If a point (x, y) is written as x + iy, a similarity is z -> a z + b. The
    normal equations then give a = sum(conj(z') w') / sum(|z'|^2), where z' and w' are deviations from the means.
    """
    with np.errstate(all="ignore"):
        z, w = points @ [1, 1j], ARCFACE_POINTS @ [1, 1j]
        z_mean, w_mean = z.mean(1), w.mean()
        deviations = z - z_mean[:, None]
        covariance = (deviations.conj() * (w - w_mean)).sum(1)
        a = np.where(abs(covariance) > _MIN_COVARIANCE, covariance / (abs(deviations) ** 2).sum(1), np.nan)
        b = w_mean - a * z_mean
    return np.stack([a.real, -a.imag, b.real, a.imag, a.real, b.imag], axis=1).reshape(-1, 2, 3)


def warp(photo: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """The aligned face, uint8 [112, 112, 3], in a photo, uint8 [H, W, 3]; black outside the photo.

    transform: of `similarity_to_arcface`, [2, 3]. Bilinear interpolation.
    """
    return cv2.warpAffine(photo, transform, (SIZE, SIZE))


def pixels_across(transform: np.ndarray) -> float:
    """The side, in pixels of the photo, of the square that becomes the aligned face; NaN if there is none."""
    return float(SIZE / np.hypot(*transform[:, 0]))
