"""Template verification on IJB-B and IJB-C: the TPR at given FPRs as the public evaluation code defines it."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.arrow_set import TemplateSet
from data.nist_set import NistSet, is_nist
from data.template_metadata import INTEGERS, NUMBERS
from eval.bootstrap import interval_displays, interval_metrics
from eval.drawing import add_legend, draw_histograms, new_axes, plot_roc, power_of_ten
from eval.embeddings import Embeddings
from eval.metrics import is_measurable, lengths, roc_curve, tpr_nearest_fpr
from eval.protocol import PAIR_COUNTS, Arrays, Column, Display, Metrics, Protocol, SetPlot, StepPlot, count_pairs
from eval.templates import images_in_medium, pair_scores, pool
from utils.errors import InputError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FPRS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
INTERVAL_FARS = (1e-2, 1e-3, 1e-4)  # of the TARs and thresholds with intervals
DECISION_FPR = 1e-4  # the threshold at this FPR decides the pairs
VARIANTS = {  # result name: (norm kept, faceness multiplied)
    "Norm:True_Det:True": (True, True),
    "Norm:True_Det:False": (True, False),
    "Norm:False_Det:True": (False, True),
}
PUBLISHED = "Norm:True_Det:True"  # the variant of published results
LARGEST_ID_TABLE = 2**24  # up to this range of template ids, a table is used: it is ten times as fast as a search
PER_IMAGE = {"faceness_scores": NUMBERS, "templates": INTEGERS, "medias": INTEGERS}  # of metadata.pt
OPTIONAL = {"identities": INTEGERS}  # per image
PER_PAIR = {"label": INTEGERS, "p1": INTEGERS, "p2": INTEGERS}


class TemplateError(InputError):
    """Templates, pairs or embeddings that cannot be scored; the message names what is wrong and where."""


def tpr_name(variant: str, fpr: float) -> str:
    """The result name of the TPR of a variant at an FPR."""
    return f"{variant}_tpr_at_fpr_{fpr}"


def threshold_name(variant: str, fpr: float) -> str:
    """The result name of the threshold of a variant at an FPR."""
    return f"{variant}_thresh_at_fpr_{fpr}"


def evaluate_templates(
    embeddings: np.ndarray,
    faceness_scores: np.ndarray,
    templates: np.ndarray,
    medias: np.ndarray,
    label: np.ndarray,
    p1: np.ndarray,
    p2: np.ndarray,
    identities: np.ndarray | None = None,
) -> Metrics:
    """Score P pairs of templates that consist of N images -> metrics by result name.

    embeddings [N, D] (image + flip, raw); faceness_scores [N]; templates and medias [N], integer ids, where different
    templates may use the same id of a medium; label [P], 1 genuine and 0 impostor; p1 and p2 [P], the template ids of
    the pairs; identities [N], integers, or None if they are not known.

    For each variant and FPR: `tpr_at_fpr_...` in percent, and `thresh_at_fpr_...`, a cosine, None where it is infinite
    (no pair is accepted there). With identities, also the metrics of `interval_metrics` in eval/bootstrap.py, from the
    scores of the variant PUBLISHED: TARs are fractions, at a FAR of at most x, not at the nearest one.

    Raises TemplateError for shapes that disagree, a template id that no image has, labels of one class only, identities
    that contradict templates or labels, and embeddings or faceness scores that are not finite.
    """
    return score_templates(embeddings, faceness_scores, templates, medias, label, p1, p2, identities)[0]


def score_templates(
    embeddings: np.ndarray,
    faceness_scores: np.ndarray,
    templates: np.ndarray,
    medias: np.ndarray,
    label: np.ndarray,
    p1: np.ndarray,
    p2: np.ndarray,
    identities: np.ndarray | None = None,
) -> tuple[Metrics, Arrays]:
    """The metrics of `evaluate_templates`, and the arrays that they are computed from.

    Arrays: label bool [P]; for each variant `<variant>.score` float32 [P], the cosine, and `<variant>.decision` bool
    [P], whether the threshold at FPR 1e-4 accepts the pair.
    """
    faceness_scores, templates, medias = (np.asarray(part) for part in (faceness_scores, templates, medias))
    label, p1, p2 = (np.asarray(part) for part in (label, p1, p2))
    _check_lengths("images", embeddings=embeddings, faceness_scores=faceness_scores, templates=templates, medias=medias)
    _check_lengths("pairs", label=label, p1=p1, p2=p2)
    if not np.array_equal(np.unique(label), [0, 1]):
        raise TemplateError(
            f"label holds {np.unique(label)[:5].tolist()}; it must hold both 0 (impostor) and 1 (genuine), nothing else"
        )
    ids, template = np.unique(templates, return_inverse=True)
    first, second = _rows(ids, p1, "p1"), _rows(ids, p2, "p2")
    if identities is not None:
        identities = _identities_of_pairs(np.asarray(identities), template, ids, first, second, label)

    norms = lengths(embeddings)
    for name, values in (("embedding", norms), ("faceness score", faceness_scores)):
        if not np.isfinite(values).all():
            raise TemplateError(f"the {name} of image {np.isfinite(values).argmin()} is not a finite number")
    in_medium = images_in_medium(template, medias)
    weights = [
        (faceness_scores if use_faceness else 1.0) / in_medium / (1.0 if keep_norm else norms)
        for keep_norm, use_faceness in VARIANTS.values()
    ]
    units = pool(embeddings, np.stack(weights), template, len(ids))  # [variants, templates, D]
    metrics: Metrics = {}
    arrays = {"label": label == 1}
    for variant, scores in zip(VARIANTS, pair_scores(units, first, second), strict=True):
        points = operating_points(label, scores)
        for fpr, (tpr, threshold) in points.items():
            metrics[tpr_name(variant, fpr)] = tpr
            metrics[threshold_name(variant, fpr)] = threshold
        threshold = points[DECISION_FPR][1]
        arrays[f"{variant}.score"] = scores.astype(np.float32)
        arrays[f"{variant}.decision"] = scores >= (np.inf if threshold is None else threshold)
        if variant == PUBLISHED and identities is not None:
            metrics |= interval_metrics(label == 1, scores, INTERVAL_FARS, identities)
    return metrics, arrays


def operating_points(label: np.ndarray, scores: np.ndarray) -> dict[float, tuple[float, float | None]]:
    """FPR -> (TPR in percent, threshold) for each of FPRS, from label [P] and scores [P].

    Each is the point of the ROC curve with the nearest FPR; of equally near points, the one with the largest FPR. The
    threshold is None where it is infinite.
    """
    curve = roc_curve(label, scores)
    points = {fpr: tpr_nearest_fpr(curve, fpr) for fpr in FPRS}
    return {fpr: (100 * tpr, threshold if np.isfinite(threshold) else None) for fpr, (tpr, threshold) in points.items()}


def _rows(ids: np.ndarray, wanted: np.ndarray, name: str) -> np.ndarray:
    """The position in the sorted ids [T] of each id in wanted [P]; `name` is for the error message."""
    low, high = int(ids[0]), int(ids[-1])
    if high - low < LARGEST_ID_TABLE:
        table = np.zeros(high - low + 1, dtype=np.int64)
        table[ids.astype(np.int64) - low] = np.arange(len(ids))
        rows = table[np.clip(wanted.astype(np.int64), low, high) - low]
    else:
        rows = np.minimum(np.searchsorted(ids, wanted), len(ids) - 1)
    unknown = np.unique(wanted[ids[rows] != wanted])
    if len(unknown):
        examples = ", ".join(map(str, unknown[:5].tolist())) + (", ..." if len(unknown) > 5 else "")
        raise TemplateError(f"{name} contains {len(unknown)} template ids that no image has: {examples}")
    return rows


def _identities_of_pairs(
    identities: np.ndarray, template: np.ndarray, ids: np.ndarray, first: np.ndarray, second: np.ndarray,
    label: np.ndarray,
) -> np.ndarray:  # fmt: skip
    """The identities of the two templates of each pair, [P, 2].

    identities and template [N], of the images; ids [T], of the templates; first and second [P], rows of templates.
    """
    _check_lengths("images", templates=template, identities=identities)
    of_template = np.empty(len(ids), dtype=identities.dtype)
    of_template[template] = identities
    mixed = np.flatnonzero(of_template[template] != identities)
    if len(mixed):
        raise TemplateError(f"identities: the images of template {ids[template[mixed[0]]]} have several identities")
    pairs = np.stack([of_template[first], of_template[second]], axis=1)
    wrong = np.flatnonzero((pairs[:, 0] == pairs[:, 1]) != (label == 1))
    if len(wrong):
        raise TemplateError(f"identities: those of pair {wrong[0]} do not agree with its label {label[wrong[0]]}")
    return pairs


def _check_lengths(unit: str, **parts: np.ndarray) -> None:
    counts = {name: len(part) for name, part in parts.items()}
    if len(set(counts.values())) != 1 or 0 in counts.values():
        stated = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise TemplateError(f"the number of {unit} must be above 0 and the same everywhere: {stated}")


def _open(path: Path) -> TemplateSet | NistSet:
    return NistSet(path) if is_nist(path) else TemplateSet(path, PER_IMAGE, PER_PAIR, OPTIONAL)


def _score(images: TemplateSet | NistSet, embeddings: Embeddings) -> tuple[Metrics, Arrays]:
    parts = (images.metadata[name] for name in (*PER_IMAGE, *PER_PAIR))
    metrics, arrays = score_templates(embeddings.features, *parts, images.metadata.get("identities"))
    return {**metrics, **count_pairs(arrays["label"])}, arrays


def _plot_roc(metrics: Metrics, arrays: Arrays) -> "Figure":
    curves = {}
    for variant in VARIANTS:
        tprs = {fpr: metrics.get(tpr_name(variant, fpr)) for fpr in FPRS}
        curves[variant] = arrays[f"{variant}.score"], {fpr: tpr for fpr, tpr in tprs.items() if tpr is not None}
    return plot_roc(min(FPRS), arrays["label"], curves)


def _plot_scores(metrics: Metrics, arrays: Arrays) -> "Figure":
    axes = new_axes(f"score, a cosine ({PUBLISHED})", "density")
    smallest = draw_histograms(axes, arrays["label"], arrays[f"{PUBLISHED}.score"])
    axes.set_yscale("log")
    top = axes.get_ylim()[1]
    axes.set_ylim(smallest / 2, top * (top / smallest) ** 0.45)  # room above the data for the names of thresholds
    thresholds = {fpr: metrics.get(threshold_name(PUBLISHED, fpr)) for fpr in FPRS}
    marked = [(fpr, threshold) for fpr, threshold in thresholds.items() if threshold is not None]
    for row, (fpr, threshold) in enumerate(marked):  # names farther right are higher, so that no name crosses a line
        end = 0.97 - 0.05 * row
        axes.axvline(threshold, 0, end + 0.02, color="black", linewidth=1, linestyle=":")
        place = dict(transform=axes.get_xaxis_transform(), ha="right", va="center")
        note = "" if is_measurable(fpr, np.count_nonzero(~arrays["label"])) else " (not measurable)"
        axes.text(threshold, end, f"FAR {power_of_ten(fpr)}{note}: {threshold:.3f} ", **place)
    return add_legend(axes)


def _displays() -> dict[str, Display]:
    displays = {}
    for variant in VARIANTS:
        for fpr in FPRS:
            threshold = threshold_name(variant, fpr)
            displays[tpr_name(variant, fpr)] = Display(companion=threshold, companion_title="threshold", far=fpr)
            displays[threshold] = Display(digits=4, unit="", better=None, far=fpr)
    return {**displays, **interval_displays(INTERVAL_FARS), **PAIR_COUNTS}


PROTOCOL = Protocol(
    open=_open,
    score=_score,
    columns=[Column(tpr_name(PUBLISHED, 1e-4), " 1e-4"), Column(tpr_name(PUBLISHED, 1e-5), " 1e-5")],
    displays=_displays(),
    plots={
        "roc": SetPlot("TAR against FAR", _plot_roc),
        "scores": SetPlot("scores of genuine and impostor pairs, and thresholds", _plot_scores),
    },
    step_plots={
        "tar": StepPlot(
            "TAR over steps",
            f"TAR [%] ({PUBLISHED})",
            {tpr_name(PUBLISHED, 1e-5): ", FAR 1e-5", tpr_name(PUBLISHED, 1e-4): ", FAR 1e-4"},
        )
    },
)
