"""Templates: pooling of a person's images into one embedding, and the cosines of millions of pairs of templates."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix

from eval.metrics import ROWS_PER_CHUNK, lengths

TEMPLATES_PER_BLOCK = 1024  # float64: 4 MB with 512 dimensions, which fits a core's cache
DECIMALS = 12  # of scores: rounding makes equal scores tie, because float64 products of unit vectors err by about 1e-15


def pool(embeddings: np.ndarray, weights: np.ndarray, template: np.ndarray, count: int) -> np.ndarray:
    """Unit templates, float64 [V, T, D]: for each of V weightings, the weighted sums of each template's embeddings.

    embeddings [N, D]; weights [V, N]; template [N]: the row of each image's template, less than T = `count`. If the
    weights contain the factor 1 / (number of images in the medium), the result is the sum of the means of the media. A
    template of length 0 stays 0.
    """
    units = np.zeros((len(weights), count, embeddings.shape[1]))
    order = np.argsort(template, kind="stable")  # each chunk of images then belongs to few templates
    for start in range(0, len(order), ROWS_PER_CHUNK):
        images = order[start : start + ROWS_PER_CHUNK]
        chunk = embeddings[images].astype(np.float64)
        rows = template[images]
        low, high = rows[0], rows[-1] + 1
        for unit, weight in zip(units, weights, strict=True):
            entries = (weight[images], (rows - low, np.arange(len(images))))
            unit[low:high] += csr_matrix(entries, shape=(high - low, len(images))) @ chunk
    for unit in units:
        unit /= lengths(unit)[:, None]
    return units


def pair_scores(units: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Cosines of P pairs of templates for each of V weightings, float64 [V, P], rounded to DECIMALS.

    units [V, T, D]: unit templates; first and second [P]: the rows of the pairs' templates.
    """
    scores = np.empty((len(units), len(first)))
    for pairs in _blocks_of_pairs(first, second, units.shape[1]):
        rows, columns = first[pairs], second[pairs]
        for unit, unit_scores in zip(torch.from_numpy(units), scores, strict=True):
            unit_scores[pairs] = _products(unit, rows, columns)
    return scores.round(DECIMALS, out=scores)


def images_in_medium(template: np.ndarray, medias: np.ndarray) -> np.ndarray:
    """The number of images that each image's medium has within its template, int [N].

    template [N]: the row of each image's template; medias [N]: ids of media. Different templates may use the same id.
    """
    ids, medium = np.unique(medias, return_inverse=True)
    pair = template * len(ids) + medium
    _, medium, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    return sizes[medium]


def _blocks_of_pairs(first: np.ndarray, second: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Yield, for each block of rows, the positions of the pairs whose `second` is in it, sorted by `first`.

    first and second [P]: rows, less than `count`. In this order, both rows of a pair are in the processor's cache. In
    the order of the list, they would be read from memory.
    """
    small = np.min_scalar_type(count)  # NumPy sorts 16-bit integers in linear time
    order = np.argsort(first.astype(small), kind="stable")
    block = (second[order] // TEMPLATES_PER_BLOCK).astype(small)
    order = order[np.argsort(block, kind="stable")]
    end = 0
    for size in np.bincount(block):
        start, end = end, end + size
        for piece in range(start, end, count**2):  # a sparse matrix takes no more entries than its shape has
            yield order[piece : min(piece + count**2, end)]


def _products(unit: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """The entries [n] of unit @ unit.T at (rows [n], columns [n]).

    unit [T, D]; rows must ascend; the same entry may occur several times.
    """
    row_ends = np.bincount(rows, minlength=len(unit)).cumsum()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        entries = torch.sparse_csr_tensor(
            torch.from_numpy(np.append(0, row_ends)), torch.from_numpy(columns), unit.new_zeros(len(columns)),
            size=(len(unit), len(unit)), check_invariants=False,  # the check would refuse repeated entries
        )  # fmt: skip
    return torch.sparse.sampled_addmm(entries, unit, unit.T, beta=0.0).values().numpy()
