"""Search of probes in a gallery: the rank of each probe's nearest mate, exact to float64 at the speed of float32."""

import numpy as np
from scipy.sparse import csr_matrix

COSINES_PER_CHUNK = 2**26  # per chunk of probes: 256 MB in float32; smaller chunks are slower per cosine
PAIRS_PER_CHUNK = 8192  # 2 x 32 MB of embeddings in float64 with 512 dimensions
ROUNDING = 1e-12  # cosines that differ by less count as equal, because rounding changes float64 cosines by about 1e-14


def nearest_mate_ranks(
    probes: np.ndarray, gallery: np.ndarray, probe_identities: np.ndarray, gallery_identities: np.ndarray
) -> np.ndarray:
    """The rank of each probe's nearest mate, int [P]. The best rank is 1. If images of other identities are as near as
    the mate, they count as nearer.

    probes [P, D] and gallery [G, D]: unit embeddings; probe_identities [P]: numbers that all occur in the gallery;
    gallery_identities [G]: the same numbers for the gallery's images, -1 for distractors.

    A float32 product takes half the time of a float64 product. It decides which images are nearer than the mate, except
    for images that are about as near. These are compared in float64.
    """
    with_identity = np.flatnonzero(gallery_identities >= 0)
    entries = (np.ones(len(with_identity), dtype=np.int8), (gallery_identities[with_identity], with_identity))
    images_of = csr_matrix(entries, shape=(gallery_identities.max() + 1, len(gallery)))  # [identities, G]
    margin = float32_margin(gallery.shape[1])
    gallery_float32 = gallery.astype(np.float32)
    result = np.empty(len(probes), dtype=np.int64)
    chunk_size = min(len(probes), max(1, COSINES_PER_CHUNK // len(gallery)))
    # These buffers are reused for all chunks, because allocating new memory takes as long as the comparisons.
    buffer = np.empty((chunk_size, len(gallery)), dtype=np.float32)
    masks = np.empty((2, *buffer.shape), dtype=bool)
    for start in range(0, len(probes), chunk_size):
        chunk = slice(start, start + chunk_size)
        mates = images_of[probe_identities[chunk]].nonzero()  # (rows of the chunk, rows of the gallery)
        nearest = np.full(len(probe_identities[chunk]), -np.inf)
        np.maximum.at(nearest, mates[0], _cosines(probes[chunk], gallery, *mates))
        cosines = np.matmul(probes[chunk].astype(np.float32), gallery_float32.T, out=buffer[: len(nearest)])
        cosines[mates] = -np.inf
        nearer, similar = masks[:, : len(nearest)]
        np.greater_equal(cosines, (nearest[:, None] + margin).astype(np.float32), out=nearer)
        np.greater_equal(cosines, (nearest[:, None] - margin).astype(np.float32), out=similar)
        similar ^= nearer  # every nearer image was counted as similar too
        rows, columns = np.divmod(np.flatnonzero(similar), len(gallery))
        as_near = rows[_cosines(probes[chunk], gallery, rows, columns) >= nearest[rows] - ROUNDING]
        result[chunk] = 1 + np.count_nonzero(nearer, axis=1) + np.bincount(as_near, minlength=len(nearest))
    return result


def float32_margin(dimensions: int) -> float:
    """A bound on the rounding error of a float32 dot product of unit vectors, whatever the order of its additions.

    With u = 2**-24, the error of a sum of n products is at most n u / (1 - n u) times the sum of their absolute values
    (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1), which is at most 1 here. Rounding adds u for
    each of the two factors and for the number that the result is compared with.
    """
    return 1.01 * (dimensions + 4) * 2.0**-24


def _cosines(probes: np.ndarray, gallery: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Dot products, float64 [n], of probes [P, D] at rows [n] with gallery [G, D] at columns [n]."""
    if len(rows) > len(probes) * len(gallery) // 64:  # above this, one product of all rows is faster
        return (probes @ gallery.T)[rows, columns]
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS_PER_CHUNK):
        chunk = slice(start, start + PAIRS_PER_CHUNK)
        cosines[chunk] = np.einsum("pd,pd->p", probes[rows[chunk]], gallery[columns[chunk]])
    return cosines
