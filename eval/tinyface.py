"""Closed-set identification on TinyFace: rank-k rates of low-resolution probes against a gallery with distractors."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_matrix

from utils.errors import InputError

RANKS = (1, 5, 20)
COSINES_A_CHUNK = 2**26  # of a chunk of probes with the whole gallery: 256 MB in float32; fewer make the product slower
PAIRS_A_CHUNK = 8192  # of gathered embeddings, in float64: 2 x 32 MB of 512 dimensions
ROUNDING = 1e-12  # cosines in float64 that differ by less are equal: rounding alone moves them by some 1e-14


class TinyFaceError(InputError):
    """Lists, names or embeddings that cannot be scored; the message names what is wrong and where."""


def evaluate_identification(
    embeddings: np.ndarray, image_paths: Sequence[str], metadata: dict[str, Sequence[str]]
) -> dict[str, float]:
    """Search every probe that has a mate in the gallery -> {"rank-1": percent, "rank-5": ..., "rank-20": ...}.

    embeddings [N, D] (image + flip, raw); image_paths [N]; metadata: `probe_paths`, `gallery_paths` and
    `distractor_paths`, whose images are found by file name without folder and extension. An identity is the file name
    up to the first "_"; distractors belong to the gallery and match nobody. A probe counts at rank k where fewer than
    k images of others are at least as near (by cosine) as the nearest of its own.

    Raises TinyFaceError for a name that two images or two list entries share, a listed image that is not there, no
    probe with a mate, and embeddings that are not finite.
    """
    return score_identification(embeddings, image_paths, metadata)[0]


def score_identification(
    embeddings: np.ndarray, image_paths: Sequence[str], metadata: dict[str, Sequence[str]]
) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """What `evaluate_identification` gives, and what it rests on.

    Arrays: probe [P], the rows of the probes that have a mate; rank [P], that of its nearest mate, 1 at best.
    """
    names = [_name(path) for path in image_paths]
    if len(embeddings) != len(names):
        raise TinyFaceError(f"{len(embeddings)} embeddings for {len(names)} image_paths")
    _check_unique(names, "image_paths")
    probes, gallery, distractors = (
        [_name(path) for path in metadata[f"{part}_paths"]] for part in ("probe", "gallery", "distractor")
    )
    _check_unique([*probes, *gallery, *distractors], "probe_paths, gallery_paths and distractor_paths")
    position = {name: row for row, name in enumerate(names)}
    absent = [name for name in (*probes, *gallery, *distractors) if name not in position]
    if absent:
        raise TinyFaceError(f"{len(absent)} listed images are not in image_paths: {', '.join(absent[:5])}")

    number = {identity: row for row, identity in enumerate(dict.fromkeys(map(_identity, gallery)))}
    probes = [name for name in probes if _identity(name) in number]
    if not probes:
        raise TinyFaceError("no probe has a mate in gallery_paths; identities are file names up to the first '_'")
    identities = np.array([number[_identity(name)] for name in gallery] + [-1] * len(distractors))  # [G]
    wanted = np.array([number[_identity(name)] for name in probes])  # [probes]
    rows = [position[name] for name in probes]
    rank = ranks(
        _unit(embeddings, rows),
        _unit(embeddings, [position[name] for name in (*gallery, *distractors)]),
        wanted,
        identities,
    )
    # In float32, as the public evaluation code rounds its rates.
    figures = {f"rank-{k}": float(np.float32((rank <= k).mean()) * np.float32(100)) for k in RANKS}
    return figures, {"probe": np.array(rows), "rank": rank}


def ranks(probes: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """Rank of each probe's nearest mate, int [P], 1 at best; images of others that are equally near come before it.

    probes [P, D] and gallery [G, D]: unit embeddings; wanted [P] and identities [G]: numbers of identities, each wanted
    one in the gallery.

    A float32 product takes half the time of a float64 one and settles all images but those about as near as the mate;
    these are compared in float64.
    """
    own = np.flatnonzero(identities >= 0)
    place = (np.ones(len(own), dtype=np.int8), (identities[own], own))
    images_of = csr_matrix(place, shape=(identities.max() + 1, len(gallery)))  # [identities, G]
    margin = float32_margin(gallery.shape[1])
    gallery_float32 = gallery.astype(np.float32)
    result = np.empty(len(probes), dtype=np.int64)
    step = min(len(probes), max(1, COSINES_A_CHUNK // len(gallery)))
    # Written again for each chunk: to fetch new pages takes as long as to compare.
    room = np.empty((step, len(gallery)), dtype=np.float32)
    masks = np.empty((2, *room.shape), dtype=bool)
    for start in range(0, len(probes), step):
        here = slice(start, start + step)
        mates = images_of[wanted[here]].nonzero()  # rows of the chunk, rows of the gallery
        nearest = np.full(len(wanted[here]), -np.inf)
        np.maximum.at(nearest, mates[0], _cosines(probes[here], gallery, *mates))
        cosines = np.matmul(probes[here].astype(np.float32), gallery_float32.T, out=room[: len(nearest)])  # [step, G]
        cosines[mates] = -np.inf
        nearer, similar = masks[:, : len(nearest)]
        np.greater_equal(cosines, (nearest[:, None] + margin).astype(np.float32), out=nearer)
        np.greater_equal(cosines, (nearest[:, None] - margin).astype(np.float32), out=similar)
        similar ^= nearer  # what is nearer is similar too
        rows, columns = np.divmod(np.flatnonzero(similar), len(gallery))
        as_near = rows[_cosines(probes[here], gallery, rows, columns) >= nearest[rows] - ROUNDING]
        result[here] = 1 + np.count_nonzero(nearer, axis=1) + np.bincount(as_near, minlength=len(nearest))
    return result


def float32_margin(dimensions: int) -> float:
    """More than a dot product of unit vectors can change by in float32, whatever the order of its additions.

    A sum of n products is wrong by at most n u / (1 - n u) times the sum of their absolute values (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1), here at most 1, with u = 2**-24. Rounding the two factors and the
    number that the result is compared with adds u each.
    """
    return 1.01 * (dimensions + 4) * 2.0**-24


def _cosines(probes: np.ndarray, gallery: np.ndarray, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Dot products, float64 [n], of probes [P, D] at rows [n] with gallery [G, D] at columns [n]."""
    if len(rows) > len(probes) * len(gallery) // 64:  # so many that one product of all is faster
        return (probes @ gallery.T)[rows, columns]
    cosines = np.empty(len(rows))
    for start in range(0, len(rows), PAIRS_A_CHUNK):
        here = slice(start, start + PAIRS_A_CHUNK)
        cosines[here] = np.einsum("pd,pd->p", probes[rows[here]], gallery[columns[here]])
    return cosines


def _name(path: str) -> str:
    """The file name without folder and extension; what begins with its only dot has none."""
    name = path[path.rfind("/") + 1 :]
    stem = name[: name.rfind(".")] if "." in name else name
    return stem if stem.strip(".") else name


def _identity(name: str) -> str:
    return name.split("_", 1)[0]


def _check_unique(names: list[str], where: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise TinyFaceError(
            f"{len(repeated)} file names stand more than once in {where}: {', '.join(repeated[:5])}; "
            "images are found by file name without folder and extension, so each must be the only one of its name"
        )


def _unit(embeddings: np.ndarray, rows: list[int]) -> np.ndarray:
    """float64 [len(rows), D] of length 1; an embedding of length 0 stays 0."""
    unit = np.asarray(embeddings)[rows].astype(np.float64)
    lengths = np.sqrt(np.einsum("nd,nd->n", unit, unit))[:, None]  # without a copy of the size of unit
    if not np.isfinite(lengths).all():
        row = rows[int(np.isfinite(lengths).argmin())]
        raise TinyFaceError(f"the embedding of image {row} is not a finite number")
    unit /= np.maximum(lengths, 1e-12)
    return unit
