"""A picture of a batch, to check before a long run: do the images show faces, upright and in the right colours?"""

import os

import cv2
import numpy as np
import torch
from torch import Tensor

from data.images import encode_png
from utils.files import atomic_write

COLUMNS, ROWS = 8, 8


def save_preview(path: str | os.PathLike, images: Tensor, labels: Tensor) -> None:
    """Write a PNG with the first 64 images of a batch, [B, 3, H, W] in [-1, 1], and the label [B] under each."""
    from torchvision.utils import make_grid  # here, because it takes a second

    pixels = (127.5 * images[: ROWS * COLUMNS].permute(0, 2, 3, 1) + 127.5).round().byte().cpu().numpy()
    tiles = []
    for image, label in zip(pixels, labels.tolist(), strict=False):
        caption = np.full((16, image.shape[1], 3), 255, dtype=np.uint8)
        cv2.putText(caption, str(label), (3, 12), cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
        tiles.append(np.vstack([image, caption]))
    tiles = torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2)
    grid = make_grid(tiles, COLUMNS, padding=0, pad_value=255).permute(1, 2, 0).numpy()
    with atomic_write(path) as file:
        file.write(encode_png(grid))
