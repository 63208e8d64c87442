"""Small IJB folders in the layout of NIST and InsightFace, written for tests."""

from pathlib import Path

import cv2
import numpy as np

ARCFACE = np.array([38.2946, 51.6963, 73.5318, 51.5014, 56.0252, 71.7366, 41.5493, 92.3655, 70.7299, 92.2041])
ARCFACE = ARCFACE.reshape(5, 2)
COUNT = 7  # photos of `write_small_folder`


def write_folder(
    root: Path, photos, points, scores=None, templates=None, medias=None, pairs=((1, 1, 1), (1, 2, 0)), order=None,
    prefix="ijbc",
) -> Path:  # fmt: skip
    """Write encoded photos as 1.jpg, 2.jpg, ... and the lists. order: the photo of each line of name_5pts_score."""
    count = len(photos)
    scores = np.linspace(0.1, 0.9, count) if scores is None else scores
    templates = np.arange(count) // 2 + 1 if templates is None else templates
    medias = np.arange(count) + 100 if medias is None else medias
    for folder in ("loose_crop", "meta"):
        (root / folder).mkdir(parents=True)
    for i, photo in enumerate(photos):
        (root / "loose_crop" / f"{i + 1}.jpg").write_bytes(photo)
    of_points = [
        f"{i + 1}.jpg {' '.join(repr(float(x)) for x in np.ravel(points[i]))} {float(scores[i])!r}"
        for i in (range(count) if order is None else order)
    ]
    lists = {
        "face_tid_mid": [f"{i + 1}.jpg {templates[i]} {medias[i]}" for i in range(count)],
        "name_5pts_score": of_points,
        "template_pair_label": [" ".join(map(str, pair)) for pair in pairs],
    }
    for name, lines in lists.items():
        (root / "meta" / f"{prefix}_{name}.txt").write_text("".join(f"{line}\n" for line in lines))
    return root


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def photo(number: int, width: int = 200, height: int = 180) -> np.ndarray:
    return np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)


def write_small_folder(root: Path, **changes) -> Path:
    """Write COUNT photos. Photo i is `photo(i)`; its face is shifted by (i, 2 i)."""
    return write_folder(
        root, [png(photo(i)) for i in range(COUNT)], [ARCFACE + (i, 2 * i) for i in range(COUNT)], **changes
    )  # fmt: skip


def aligned(i: int) -> np.ndarray:
    """The aligned face of photo i of `write_small_folder`."""
    return photo(i)[2 * i : 2 * i + 112, i : i + 112]
