"""Template verification on IJB-B and IJB-C: the TPR at given FPRs as the public evaluation code defines it."""

import warnings
from collections.abc import Iterator

import numpy as np
import torch
from scipy.sparse import csr_matrix

from utils.errors import InputError

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
DECISION_FPR = 1e-4  # at whose threshold a pair's decision is kept
VARIANTS = {  # result name: (norm kept, faceness multiplied)
    "Norm:True_Det:True": (True, True),
    "Norm:True_Det:False": (True, False),
    "Norm:False_Det:True": (False, True),
}
IDS_A_TABLE = 2**24  # span of template ids up to which they are looked up in a table, ten times as fast as searched
IMAGES_A_CHUNK = 16_384  # in float64: 64 MB of 512 dimensions
TEMPLATES_A_BLOCK = 1024  # in float64: 4 MB of 512 dimensions, which stay in a core's cache while pairs draw on them
DECIMALS = 12  # that scores are rounded to, so that equal ones tie: float64 products of unit vectors err by some 1e-15


class TemplateError(InputError):
    """Templates, pairs or embeddings that cannot be scored; the message names what is wrong and where."""


def evaluate_templates(
    embeddings: np.ndarray,
    faceness_scores: np.ndarray,
    templates: np.ndarray,
    medias: np.ndarray,
    label: np.ndarray,
    p1: np.ndarray,
    p2: np.ndarray,
) -> dict[str, float | None]:
    """Score P pairs of templates that N images make up -> figures by result name.

    embeddings [N, D] (image + flip, raw); faceness_scores [N]; templates and medias [N], integer ids, where a medium is
    known by its id within a template; label [P], 1 genuine and 0 impostor; p1 and p2 [P], the pairs' template ids.

    For each variant and FPR: `tpr_at_fpr_...` in percent, and `thresh_at_fpr_...`, a cosine, None where it is infinite
    (nothing is accepted there). Raises TemplateError for shapes that disagree, a template id that no image has, labels
    of one class only, and embeddings or faceness scores that are not finite.
    """
    return score_templates(embeddings, faceness_scores, templates, medias, label, p1, p2)[0]


def score_templates(
    embeddings: np.ndarray,
    faceness_scores: np.ndarray,
    templates: np.ndarray,
    medias: np.ndarray,
    label: np.ndarray,
    p1: np.ndarray,
    p2: np.ndarray,
) -> tuple[dict[str, float | None], dict[str, np.ndarray]]:
    """What `evaluate_templates` gives, and what it rests on.

    Arrays: label bool [P]; for each variant `<variant>.score` float32 [P], the cosine, and `<variant>.decision` bool
    [P], whether the threshold at FPR 1e-4 accepts the pair.
    """
    faceness_scores, templates, medias = (np.asarray(part) for part in (faceness_scores, templates, medias))
    label, p1, p2 = (np.asarray(part) for part in (label, p1, p2))
    _check_lengths("images", embeddings=embeddings, faceness_scores=faceness_scores, templates=templates, medias=medias)
    _check_lengths("pairs", label=label, p1=p1, p2=p2)
    if not np.array_equal(np.unique(label), [0, 1]):
        raise TemplateError(
            f"label holds {np.unique(label)[:5].tolist()}; it must hold 0 (impostor), 1 (genuine), both"
        )
    ids, template = np.unique(templates, return_inverse=True)
    first, second = _rows(ids, p1, "p1"), _rows(ids, p2, "p2")

    norms = _norms(embeddings)
    for name, values in (("embedding", norms), ("faceness score", faceness_scores)):
        if not np.isfinite(values).all():
            raise TemplateError(f"the {name} of image {np.isfinite(values).argmin()} is not a finite number")
    in_medium = _images_in_medium(template, medias)
    weights = [
        (faceness_scores if use_faceness else 1.0) / in_medium / (1.0 if keep_norm else norms)
        for keep_norm, use_faceness in VARIANTS.values()
    ]
    units = pool(embeddings, np.stack(weights), template, len(ids))
    figures: dict[str, float | None] = {}
    arrays = {"label": label == 1}
    for variant, scores in zip(VARIANTS, pair_scores(units, first, second), strict=True):
        points = dict(zip(FPRS, tpr_at_fpr(label, scores), strict=True))
        for fpr, (tpr, threshold) in points.items():
            figures[f"{variant}_tpr_at_fpr_{fpr}"] = tpr
            figures[f"{variant}_thresh_at_fpr_{fpr}"] = threshold
        threshold = points[DECISION_FPR][1]
        arrays[f"{variant}.score"] = scores.astype(np.float32)
        arrays[f"{variant}.decision"] = scores >= (np.inf if threshold is None else threshold)
    return figures, arrays


def pool(embeddings: np.ndarray, weights: np.ndarray, template: np.ndarray, count: int) -> np.ndarray:
    """Unit templates, float64 [V, T, D]: for each of V weightings, the weighted sums of each template's embeddings.

    embeddings [N, D]; weights [V, N]; template [N]: the row that an image goes to, below `count` (T). A weight that
    holds 1 / (images of the medium) makes a sum that of the media's means. A template of length 0 stays 0.
    """
    units = np.zeros((len(weights), count, embeddings.shape[1]))
    order = np.argsort(template, kind="stable")  # so that a chunk of images goes to few templates
    for start in range(0, len(order), IMAGES_A_CHUNK):
        images = order[start : start + IMAGES_A_CHUNK]
        chunk = embeddings[images].astype(np.float64)
        rows = template[images]
        low, high = rows[0], rows[-1] + 1
        for unit, weight in zip(units, weights, strict=True):
            place = (weight[images], (rows - low, np.arange(len(images))))
            unit[low:high] += csr_matrix(place, shape=(high - low, len(images))) @ chunk
    for unit in units:
        unit /= np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), 1e-12)
    return units


def pair_scores(units: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot products, float64 [V, P], of the rows first [P] and second [P], below T, of each of units [V, T, D].

    Rounded to DECIMALS.
    """
    scores = np.empty((len(units), len(first)))
    for pairs in _by_blocks(first, second, units.shape[1]):
        rows, columns = first[pairs], second[pairs]
        for unit, of_variant in zip(torch.from_numpy(units), scores, strict=True):
            of_variant[pairs] = _products(unit, rows, columns)
    return scores.round(DECIMALS, out=scores)


def _by_blocks(first: np.ndarray, second: np.ndarray, count: int) -> Iterator[np.ndarray]:
    """Positions of the pairs of one block of `second` after another, each by `first`, below `count`.

    In this order a pair finds both its rows in the cache. In the order of the list it would fetch them from memory.
    """
    small = np.min_scalar_type(count)  # NumPy sorts 16 bits in linear time
    order = np.argsort(first.astype(small), kind="stable")
    block = (second[order] // TEMPLATES_A_BLOCK).astype(small)
    order = order[np.argsort(block, kind="stable")]
    end = 0
    for size in np.bincount(block):
        start, end = end, end + size
        for piece in range(start, end, count**2):  # no more entries than a sparse matrix has by its shape
            yield order[piece : min(piece + count**2, end)]


def _products(unit: torch.Tensor, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    """Entries [n] of unit @ unit.T for unit [T, D] at (rows [n], columns [n]), rows ascending; any may be repeated."""
    row_ends = np.bincount(rows, minlength=len(unit)).cumsum()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        wanted = torch.sparse_csr_tensor(
            torch.from_numpy(np.append(0, row_ends)), torch.from_numpy(columns), unit.new_zeros(len(columns)),
            size=(len(unit), len(unit)), check_invariants=False,  # an entry may stand twice
        )  # fmt: skip
    return torch.sparse.sampled_addmm(wanted, unit, unit.T, beta=0.0).values().numpy()


def tpr_at_fpr(label: np.ndarray, scores: np.ndarray) -> list[tuple[float, float | None]]:
    """(TPR in percent, threshold) for each of FPRS, from label [P] and scores [P].

    The point of the ROC curve whose FPR is nearest; of equally near ones that with the largest FPR.
    """
    false, true, thresholds = roc_points(label, scores)
    fpr, tpr = false / false[0], true / true[0]
    nearest = [int(np.abs(fpr - wanted).argmin()) for wanted in FPRS]
    return [(float(100 * tpr[at]), float(thresholds[at]) if np.isfinite(thresholds[at]) else None) for at in nearest]


def roc_points(label: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(impostors accepted, genuine pairs accepted, threshold), each [points], from all accepted down to none.

    The points of scikit-learn's `roc_curve` (its defaults): one a distinct score, but none between two equal steps.
    Sorting values alone, without the labels that belong to them, takes a tenth of its time.
    """
    ascending = np.sort(scores)
    start = np.flatnonzero(np.append(True, ascending[1:] != ascending[:-1]))  # of each distinct score
    thresholds = ascending[start]
    genuine = np.bincount(np.searchsorted(thresholds, scores[label == 1]), minlength=len(start))  # of each
    impostors = np.diff(start, append=len(scores)) - genuine
    turn = (genuine[1:-1] != genuine[:-2]) | (impostors[1:-1] != impostors[:-2])  # the ends of the curve aside
    kept = np.flatnonzero(np.concatenate([[True], turn, [True]])[: len(start)])
    true = genuine[::-1].cumsum()[::-1][kept]
    false = len(scores) - start[kept] - true
    return np.append(false, 0), np.append(true, 0), np.append(thresholds[kept], np.inf)


def _norms(embeddings: np.ndarray) -> np.ndarray:
    """Lengths, float64 [N] and at least 1e-12, of embeddings [N, D]."""
    norms = np.empty(len(embeddings))
    for start in range(0, len(embeddings), IMAGES_A_CHUNK):
        here = slice(start, start + IMAGES_A_CHUNK)
        chunk = embeddings[here].astype(np.float64)
        norms[here] = np.sqrt(np.einsum("nd,nd->n", chunk, chunk))
    return np.maximum(norms, 1e-12)


def _images_in_medium(template: np.ndarray, medias: np.ndarray) -> np.ndarray:
    """How many images each image's medium has within its template, [N]."""
    names, medium = np.unique(medias, return_inverse=True)
    pair = template * len(names) + medium
    _, medium, sizes = np.unique(pair, return_inverse=True, return_counts=True)
    return sizes[medium]


def _rows(ids: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    """Where each of wanted [P] stands in the sorted ids [T]."""
    low, high = int(ids[0]), int(ids[-1])
    if high - low < IDS_A_TABLE:
        table = np.zeros(high - low + 1, dtype=np.int64)
        table[ids.astype(np.int64) - low] = np.arange(len(ids))
        rows = table[np.clip(wanted.astype(np.int64), low, high) - low]
    else:
        rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    unknown = np.unique(wanted[ids[rows] != wanted])
    if len(unknown):
        some = ", ".join(map(str, unknown[:5].tolist())) + (", ..." if len(unknown) > 5 else "")
        raise TemplateError(f"{name} names {len(unknown)} template ids that no image has: {some}")
    return rows


def _check_lengths(unit: str, **parts: np.ndarray) -> None:
    lengths = {name: len(part) for name, part in parts.items()}
    if len(set(lengths.values())) != 1 or 0 in lengths.values():
        stated = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise TemplateError(f"not the same number of {unit}, or none: {stated}")
