"""Checks every image of a set. Per image, only one row of an array is kept, so millions of images fit into memory."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from data.images import SIZE, ImageError, decode_rgb
from data.workers import decoded_batches
from tools.examine.report import Report

CHUNK = 256  # images per task of a worker
OTHER_SIZE = f"image that is not {SIZE}x{SIZE}"
# One row per image: the offset of the next record, or -1 if the record could not be read; the label; whether the image
# can be used; a hash of its bytes.
ROW = np.dtype([("end", "i8"), ("label", "f4"), ("is_usable", "?"), ("digest", "u8", 2)])


class Checked(NamedTuple):
    """Results for n images. rows: ROW [n]; problems, notes: pairs (finding, name of the image)."""

    rows: np.ndarray
    problems: list[tuple[str, str]]
    notes: list[tuple[str, str]]


class ImageSource(Protocol):
    """The images of a set: source[positions] checks images, source.image(position) decodes a usable one."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: np.ndarray) -> Checked: ...

    def image(self, position: int) -> np.ndarray:
        """Return uint8 [112, 112, 3] RGB."""


class Pixels:
    """Decodes usable images: pixels[positions] is uint8 [n, 112, 112, 3], in RGB, or in BGR if `swapped`."""

    def __init__(self, source: ImageSource, swapped: bool) -> None:
        self.source, self.swapped = source, swapped

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.stack([self.source.image(int(position)) for position in positions]))
        return images.flip(3) if self.swapped else images


def check_image(data: bytes, row: np.void) -> Iterator[str]:
    """Yield what is wrong with an encoded image. Write its hash, and whether it decodes, into `row`."""
    row["digest"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype=np.uint64)
    try:
        image = decode_rgb(data, "")
    except ImageError:
        yield "image that does not decode"
        return
    row["is_usable"] = True
    if image.shape != (SIZE, SIZE, 3):
        yield OTHER_SIZE
    if image.min() == image.max():
        yield "image of a single brightness"


def check_all_images(source: ImageSource, report: Report, num_workers: int) -> np.ndarray:
    """Check all images with `num_workers` processes. Returns ROW [N] in their order; findings go into the report."""
    rows = np.zeros(len(source), ROW)
    chunks = [np.arange(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    with tqdm(total=len(rows), desc="checking images", unit="image") as bar:
        for positions, checked in decoded_batches(source, chunks, num_workers):
            rows[positions] = checked.rows
            for finding, name in checked.problems:
                report.problem(finding, [name])
            for finding, name in checked.notes:
                report.note(finding, [name])
            bar.update(len(positions))
    return rows
