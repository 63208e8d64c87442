"""Closed-set identification on TinyFace: rank-k rates of low-resolution probes against a gallery with distractors."""

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np

from utils.errors import InputError

RANKS = (1, 5, 20)
COSINES_A_CHUNK = 2**24  # of a chunk of probes with the whole gallery: 128 MB
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
    rank = ranks(
        _unit(embeddings, [position[name] for name in probes]),
        _unit(embeddings, [position[name] for name in (*gallery, *distractors)]),
        wanted,
        identities,
    )
    # In float32, as the public evaluation code rounds its rates.
    return {f"rank-{k}": float(np.float32((rank <= k).mean()) * np.float32(100)) for k in RANKS}


def ranks(probes: np.ndarray, gallery: np.ndarray, wanted: np.ndarray, identities: np.ndarray) -> np.ndarray:
    """Rank of each probe's nearest mate, int [P], 1 at best; images of others that are equally near come before it.

    probes [P, D] and gallery [G, D]: unit embeddings; wanted [P] and identities [G]: numbers of identities, each wanted
    one in the gallery.
    """
    result = np.empty(len(probes), dtype=np.int64)
    step = max(1, COSINES_A_CHUNK // len(gallery))
    for start in range(0, len(probes), step):
        here = slice(start, start + step)
        cosines = probes[here] @ gallery.T  # [step, G]
        mates = wanted[here, None] == identities
        nearest_mate = np.where(mates, cosines, -np.inf).max(axis=1, keepdims=True)
        result[here] = 1 + (~mates & (cosines >= nearest_mate - ROUNDING)).sum(axis=1)
    return result


def _name(path: str) -> str:
    return PurePosixPath(path).stem


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
    lengths = np.linalg.norm(unit, axis=1, keepdims=True)
    if not np.isfinite(lengths).all():
        row = rows[int(np.isfinite(lengths).argmin())]
        raise TinyFaceError(f"the embedding of image {row} is not a finite number")
    return unit / np.maximum(lengths, 1e-12)
