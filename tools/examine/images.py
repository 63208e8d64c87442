"""What every set's images are asked. Of each a row of an array is kept, so that a set of millions fits into memory."""

import hashlib
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import numpy as np
import torch
from tqdm import tqdm

from data.images import SIZE, ImageError, decode_rgb
from data.workers import decoded_batches
from tools.examine.report import Report

CHUNK = 256
OTHER_SIZE = f"image that is not {SIZE}x{SIZE}"
# What is kept of an image: where the record after it begins, -1 where it could not be read; its label; whether it
# decodes; 16 bytes that tell it from others.
ROW = np.dtype([("end", "i8"), ("label", "f4"), ("sound", "?"), ("digest", "u8", 2)])


class Looked(NamedTuple):
    """rows: ROW [n]; problems, notes: (kind, name) of single images."""

    rows: np.ndarray
    problems: list[tuple[str, str]]
    notes: list[tuple[str, str]]


class Source(Protocol):
    """A set's images: source[positions] looks at them, image(position) decodes one that is sound."""

    def __len__(self) -> int: ...

    def __getitem__(self, positions: np.ndarray) -> Looked: ...

    def image(self, position: int) -> np.ndarray:
        """uint8 [112, 112, 3] RGB."""


class Pixels:
    """pixels[positions] -> uint8 [n, 112, 112, 3] of sound images, RGB or, `swapped`, BGR."""

    def __init__(self, source: Source, swapped: bool) -> None:
        self.source, self.swapped = source, swapped

    def __getitem__(self, positions: np.ndarray) -> torch.Tensor:
        images = torch.from_numpy(np.stack([self.source.image(int(position)) for position in positions]))
        return images.flip(3) if self.swapped else images


def look(data: bytes, row: np.void) -> Iterator[str]:
    """What is wrong with an encoded image; its digest, and whether it decodes, go into `row`."""
    row["digest"] = np.frombuffer(hashlib.blake2b(data, digest_size=16).digest(), dtype=np.uint64)
    try:
        image = decode_rgb(data, "")
    except ImageError:
        yield "image that does not decode"
        return
    row["sound"] = True
    if image.shape != (SIZE, SIZE, 3):
        yield OTHER_SIZE
    if image.min() == image.max():
        yield "image of one brightness throughout"


def look_at_all(source: Source, report: Report, num_workers: int) -> np.ndarray:
    """ROW [N] of a whole source, decoded by `num_workers` processes, in its order."""
    rows = np.zeros(len(source), ROW)
    chunks = [np.arange(start, min(start + CHUNK, len(rows))) for start in range(0, len(rows), CHUNK)]
    with tqdm(total=len(rows), desc="looking at images", unit="image") as bar:
        for positions, looked in decoded_batches(source, chunks, num_workers):
            rows[positions] = looked.rows
            for kind, name in looked.problems:
                report.problem(kind, [name])
            for kind, name in looked.notes:
                report.note(kind, [name])
            bar.update(len(positions))
    return rows
