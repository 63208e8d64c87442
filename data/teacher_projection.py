"""Teacher embeddings of another size, or of several teachers: unit embeddings side by side, times a matrix.

The unit embedding of teacher i is multiplied by the square root of its share. The cosine of two such rows is then the
mean of the teachers' cosines, weighted by the shares. The matrix is fitted to all rows of the training set, and stored
in one file with its description.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from tqdm import tqdm

from data.pairs import Cosines, Pairs, pair_cosines
from data.teacher_cache import Description, EmbeddingError, EmbeddingFile, TeacherEmbeddings
from utils.distributed import all_gather, rank, world_size
from utils.errors import describe_error
from utils.files import atomic_write, checksum

RUN_COPY = "teacher_projection.safetensors"  # the copy in the folder of a run
CHUNK = 4096  # images at a time in the fit: 2 * CHUNK rows of float64, 34 MB for 512 dimensions


class Projection(NamedTuple):
    """matrix: float64 [D, size], from rows of JoinedEmbeddings; description: what it was fitted to, and what it keeps.

    As for the file of embeddings, the section "about" of the description is for information only.
    """

    matrix: Tensor
    description: Description

    @property
    def sha256(self) -> str:
        """The SHA-256 of the matrix, in hexadecimal digits."""
        return checksum([self.matrix.numpy().tobytes()])


class JoinedEmbeddings(TeacherEmbeddings):
    """The unit embeddings of one or several files side by side, times the matrix of a projection if there is one.

    shares: the share of each teacher in the cosine, positive, with the sum 1. Rows without a projection have length 1.
    """

    def __init__(
        self, files: Sequence[EmbeddingFile], shares: Sequence[float], projection: Projection | None = None
    ) -> None:
        self.files, self.shares, self.projection = tuple(files), tuple(shares), projection
        self.dimensions = sum(file.dimensions for file in files)
        self.identity = " + ".join(
            f"{share:.6g} of {file.identity}" if len(files) > 1 else file.identity
            for file, share in zip(files, shares, strict=True)
        )
        if projection is not None:
            size = projection.matrix.shape[1]
            self.identity += f"; projected to {size} dimensions, sha256 {projection.sha256[:16]}"

    def rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        rows = self.unit_rows(positions, flips)
        return (rows if self.projection is None else rows @ self.projection.matrix).half()

    def unit_rows(self, positions: np.ndarray, flips: np.ndarray) -> Tensor:
        """The rows before the projection, float64 [B, D]; see `rows`.

        In float64, so that the rounded result does not depend on the size of the batch or the number of threads.
        """
        units = [F.normalize(file.rows(positions, flips).double(), eps=1e-12) for file in self.files]
        return torch.cat([unit * share**0.5 for unit, share in zip(units, self.shares, strict=True)], 1)

    def write_copies(self, folder: Path) -> None:
        if self.projection is not None:
            write_projection(folder / RUN_COPY, self.projection)

    def describe(self, size: int) -> Description:
        """Describe the projection of these embeddings to `size` dimensions, without the section "about"."""
        sections = ({key: value for key, value in file.description.items() if key != "about"} for file in self.files)
        return {
            "projection": {"method": "pca", "dimensions": [self.dimensions, size], "shares": list(self.shares)},
            **{f"embeddings {number}": section for number, section in enumerate(sections, 1)},
        }


def second_moment(embeddings: JoinedEmbeddings, images: int, chunk: int = CHUNK) -> Tensor:
    """The sum of x xᵀ over the unit rows x of all images and mirror images, float64 [D, D].

    Every rank must call this, and each reads its share of the chunks of images. They are summed in the order of the
    images, so that the result does not depend on the number of ranks. Raises EmbeddingError if an embedding is not
    finite.
    """
    moment = torch.zeros(embeddings.dimensions, embeddings.dimensions, dtype=torch.float64)
    with tqdm(total=images, desc="fitting the projection", unit="image", disable=rank() != 0) as bar:
        for start in range(0, images, chunk * world_size()):
            own = start + chunk * rank()
            positions = np.arange(own, min(own + chunk, images))  # none for some ranks in the last round
            part = torch.zeros_like(moment)
            for flip in (False, True):
                rows = embeddings.unit_rows(positions, np.full(len(positions), flip))
                part.addmm_(rows.T, rows)
            for of_rank in all_gather(part[None]):
                moment += of_rank
            bar.update(min(chunk * world_size(), images - start))
    if not moment.isfinite().all():
        paths = ", ".join(str(file.path) for file in embeddings.files)
        raise EmbeddingError(f"{paths}: contains embeddings that are not finite; remove the file to make it again")
    return moment


def fit_projection(moment: Tensor, size: int) -> tuple[Tensor, float]:
    """Fit the matrix that keeps most of the energy of all rows: the mean of their squared lengths.

    Its columns are the eigenvectors of the second moment of the rows with the largest eigenvalues. Nothing is centered,
    so that cosines survive. The entry of a column with the largest magnitude is positive.

    moment: of `second_moment`. Returns the matrix, float64 [D, size], and the share of the energy that it keeps, from 0
    to 1.
    """
    energies, vectors = torch.linalg.eigh(moment)  # ascending
    matrix = vectors.flip(1)[:, :size]
    largest = matrix.gather(0, matrix.abs().argmax(0, keepdim=True))
    return (matrix * largest.sign()).contiguous(), float(energies[-size:].sum() / energies.sum())


def describe_changes(embeddings: JoinedEmbeddings, matrix: Tensor, pairs: Pairs) -> dict[str, dict[str, float]]:
    """How the projection changes the cosines of pairs of images, which are not mirrored.

    For pairs of one identity ("same") and of two ("different"): their number, the mean cosine before and after, and the
    mean and the largest absolute change. A kind without pairs is left out.
    """
    positions = pairs.positions()
    rows = embeddings.unit_rows(positions, np.zeros(len(positions), dtype=bool))
    before = pair_cosines(pairs, positions, rows.numpy())
    after = pair_cosines(pairs, positions, F.normalize(rows @ matrix).numpy())
    return {
        kind: {
            "pairs": len(old),
            "before": float(old.mean()),
            "after": float(new.mean()),
            "mean_change": float(abs(new - old).mean()),
            "largest_change": float(abs(new - old).max()),
        }
        for kind, old, new in zip(Cosines._fields, before, after, strict=True)
        if len(old)
    }


def write_projection(path: str | os.PathLike, projection: Projection) -> None:
    """Write the file atomically. The same projection always gives the same bytes."""
    text = json.dumps(projection.description, indent=2, ensure_ascii=False)
    digest = checksum([projection.matrix.numpy().tobytes(), text.encode()])
    with atomic_write(path) as file:
        # One entry only, because the order of several would be random.
        file.write(save({"matrix": projection.matrix}, {"description": f"{digest} {text}"}))


def read_projection(path: str | os.PathLike, remedy: str = "remove it to fit it again") -> Projection:
    """Read a file of `write_projection`. Raises EmbeddingError, with the remedy in its message, if it is broken."""
    try:
        with safe_open(path, "pt") as file:
            matrix, (digest, _, text) = file.get_tensor("matrix"), file.metadata()["description"].partition(" ")
        if checksum([matrix.numpy().tobytes(), text.encode()]) != digest:
            raise ValueError("its content differs from its checksum")
        description = json.loads(text)
        sizes = description["projection"]["dimensions"]
        if matrix.dtype != torch.float64 or list(matrix.shape) != sizes or not matrix.isfinite().all():
            raise ValueError(f"its matrix is not a finite float64 {sizes}")
        if not all(isinstance(section, dict) for section in description.values()):
            raise TypeError("a section of its description is not a dict")
        describe_projection(description)  # raises an error if a value is missing or of another kind
        return Projection(matrix, description)
    except (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise EmbeddingError(
            f"{path}: not a projection of embeddings, or broken ({describe_error(error)}); {remedy}"
        ) from error


def describe_projection(description: Description) -> str:
    """One line for the log: the sizes, the energy that is kept, and how cosines change."""
    (before, after), about = description["projection"]["dimensions"], description["about"]
    text = f"from {before} to {after} dimensions: {about['energy']:.2%} of the energy kept"
    names = {"same": "one identity", "different": "two identities"}
    for kind, change in about["cosines"].items():
        text += (
            f"; cosines of {change['pairs']} pairs of {names[kind]}: mean {change['before']:.3f}, now "
            f"{change['after']:.3f}, changed by {change['mean_change']:.3f} on average, by at most "
            f"{change['largest_change']:.3f}"
        )
    return text
