"""Template verification on IJB-B and IJB-C: the TPR at given FPRs as the public evaluation code defines it."""

import numpy as np
from scipy.sparse import csr_matrix
from sklearn.metrics import roc_curve

from utils.errors import InputError

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
VARIANTS = {  # result name: (norm kept, faceness multiplied)
    "Norm:True_Det:True": (True, True),
    "Norm:True_Det:False": (True, False),
    "Norm:False_Det:True": (False, True),
}
PAIRS_A_CHUNK = 16_384  # so that the templates of a chunk's pairs take some tens of MB
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

    embeddings = np.asarray(embeddings, dtype=np.float64)
    norms = np.maximum(np.linalg.norm(embeddings, axis=1), 1e-12)
    for name, values in (("embedding", norms), ("faceness score", faceness_scores)):
        if not np.isfinite(values).all():
            raise TemplateError(f"the {name} of image {np.isfinite(values).argmin()} is not a finite number")
    in_medium = _images_in_medium(template, medias)
    figures: dict[str, float | None] = {}
    for variant, (keep_norm, use_faceness) in VARIANTS.items():
        weights = (faceness_scores if use_faceness else 1.0) / in_medium / (1.0 if keep_norm else norms)  # [N]
        unit = pool(embeddings, weights, template, len(ids))
        operating_points = tpr_at_fpr(label, pair_scores(unit, first, second))
        for fpr, (tpr, threshold) in zip(FPRS, operating_points, strict=True):
            figures[f"{variant}_tpr_at_fpr_{fpr}"] = tpr
            figures[f"{variant}_thresh_at_fpr_{fpr}"] = threshold
    return figures


def pool(embeddings: np.ndarray, weights: np.ndarray, template: np.ndarray, count: int) -> np.ndarray:
    """Unit templates, float64 [T, D]: the sum of weights [N] * embeddings [N, D] over each one's images.

    template [N]: the row that an image goes to, below `count` (T). A weight that holds 1 / (images of the medium) makes
    it the sum of the media's means. A template of length 0 stays 0.
    """
    one_a_column = csr_matrix((weights, (template, np.arange(len(template)))), shape=(count, len(template)))
    sums = one_a_column @ embeddings
    return sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)


def pair_scores(unit: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Dot products, float64 [P], of the rows first [P] and second [P] of unit [T, D], to DECIMALS."""
    scores = np.empty(len(first))
    for start in range(0, len(first), PAIRS_A_CHUNK):
        here = slice(start, start + PAIRS_A_CHUNK)
        scores[here] = np.einsum("pd,pd->p", unit[first[here]], unit[second[here]])
    return scores.round(DECIMALS, out=scores)


def tpr_at_fpr(label: np.ndarray, scores: np.ndarray) -> list[tuple[float, float | None]]:
    """(TPR in percent, threshold) for each of FPRS, from label [P] and scores [P].

    The point of the ROC curve whose FPR is nearest; of equally near ones that with the largest FPR.
    """
    fpr, tpr, thresholds = (part[::-1] for part in roc_curve(label, scores))  # from the largest FPR down
    nearest = [int(np.abs(fpr - wanted).argmin()) for wanted in FPRS]
    return [(float(100 * tpr[at]), float(thresholds[at]) if np.isfinite(thresholds[at]) else None) for at in nearest]


def _images_in_medium(template: np.ndarray, medias: np.ndarray) -> np.ndarray:
    """How many images each image's medium has within its template, [N]."""
    _, medium, sizes = np.unique(np.stack([template, medias]), axis=1, return_inverse=True, return_counts=True)
    return sizes[medium.reshape(-1)]


def _rows(ids: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    """Where each of wanted [P] stands in the sorted ids [T]."""
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
