"""Small sets in CVLFace's Arrow layout, for tests. Tests that import it are skipped if `datasets` is not installed."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

datasets = pytest.importorskip("datasets")
COUNT = 12  # images of a template set


def face(number: int, size: int = 112) -> np.ndarray:
    """uint8 RGB: red is the number, green 100, blue 200."""
    return np.full((size, size, 3), (number, 100, 200), dtype=np.uint8)


def png(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1])[1].tobytes()


def write_set(folder: Path, index=None, images=None, metadata=None, image_type=None) -> Path:
    """Write a template set with one row per index, in this order (shuffled by default). Image i is `face(i)`."""
    index = list(np.random.default_rng(0).permutation(COUNT)) if index is None else index
    images = [png(face(number)) for number in index] if images is None else images
    features = datasets.Features(image=image_type or datasets.Image(), index=datasets.Value("int64"))
    entries = [image and {"bytes": image, "path": None} for image in images]
    rows = {"image": images if image_type else entries, "index": index}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder))
    torch.save({"templates": np.arange(COUNT)} if metadata is None else metadata, folder / "metadata.pt")
    return folder


def write_pairs(folder: Path, index: list[int], is_same: list, images: list[bytes] | None = None) -> Path:
    """Write a verification set with one row per index, in this order. Image i is `face(i)`."""
    images = [png(face(number)) for number in index] if images is None else images
    rows = {"image": [{"bytes": image, "path": None} for image in images], "index": index, "is_same": is_same}
    datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image()).save_to_disk(str(folder))
    return folder


def numbers(images: torch.Tensor) -> list[int]:
    """The numbers of images that `face` made."""
    assert images.dtype == torch.uint8 and images.shape[1:] == (112, 112, 3)
    assert (images[..., 1] == 100).all() and (images[..., 2] == 200).all()
    return images[:, 5, 5, 0].tolist()
