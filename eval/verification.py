"""Pair verification on the .bin sets: ten-fold accuracy as LFW's protocol and the public evaluation code define it."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from data.arrow_set import ArrowVerificationSet
from data.bin_set import BinError, VerificationSet, read_bin
from data.image_header import stated_size
from data.images import SIZE
from eval import bootstrap, rfw
from eval.discard import DiscardCurve, area_up_to, discard_curve
from eval.drawing import (
    add_legend,
    draw_histograms,
    new_axes,
    plot_discard_curves,
    plot_rates_by_norm,
    plot_roc,
)
from eval.embeddings import Embeddings
from eval.metrics import (
    area_under,
    contiguous_folds,
    equal_error_rate,
    is_measurable,
    roc_curve,
    tar_at_far,
    unit_length,
)
from eval.protocol import (
    PAIR_COUNTS,
    Arrays,
    Column,
    Display,
    Metrics,
    PairError,
    Protocol,
    SetPlot,
    StepPlot,
    count_pairs,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure

THRESHOLDS = np.arange(400) / 100  # of the squared distance between unit embeddings
FOLDS = 10
FARS = (1e-3, 1e-2)
ALL_FARS = (1e-2, 1e-3, 1e-4, 1e-5)  # of the thresholds, and of the intervals
DISCARD_FARS = (1e-2, 1e-3)
LOWEST_FAR_DRAWN = 1e-4
ERRORS_SHOWN = 10  # of rejected genuine pairs, and as many of accepted impostor pairs


def evaluate_pairs(embeddings: np.ndarray, is_same: np.ndarray, identities: np.ndarray | None = None) -> Metrics:
    """embeddings [2P, D] (image + flip; rows 2i and 2i + 1 are pair i), is_same bool [P] -> metrics by result name.

    identities: int [2P], the identity of each image, if it is known; only the intervals depend on it.

    Accuracy-Flip: the mean accuracy of ten folds; Accuracy-Std: its population standard deviation. A fold's threshold
    is the smallest distance with the best accuracy on the other nine folds. TAR_at_FAR_..., AUC and EER (see
    `roc_metrics`) and thresholds and intervals (see `interval_metrics`) are over all pairs, without folds. Thresholds
    are cosines, the others fractions. Raises ValueError for fewer than ten pairs or shapes that disagree.
    """
    return score_pairs(embeddings, is_same, identities)[0]


def score_pairs(
    embeddings: np.ndarray, is_same: np.ndarray, identities: np.ndarray | None = None
) -> tuple[Metrics, Arrays]:
    """The metrics of `evaluate_pairs`, and the arrays that they are computed from.

    Arrays: is_same bool [P]; score float64 [P], the cosine; decision bool [P], whether the fold's threshold accepts the
    pair as genuine; threshold float64 [10], the folds' thresholds as cosines.
    """
    is_same = np.asarray(is_same, dtype=bool)
    if len(embeddings) != 2 * len(is_same) or len(is_same) < FOLDS:
        raise ValueError(
            f"{len(embeddings)} embeddings for {len(is_same)} pairs; expected two per pair, and at least {FOLDS} pairs"
        )
    distances = squared_distances(embeddings)
    correct = (distances[:, None] < THRESHOLDS) == is_same[:, None]  # [P, thresholds]
    fold = contiguous_folds(len(is_same), FOLDS)
    best = np.array([correct[fold != number].sum(0).argmax() for number in range(FOLDS)])  # the first of the best
    is_correct = correct[np.arange(len(is_same)), best[fold]]  # with the threshold of the pair's fold
    accuracies = [is_correct[fold == number].mean() for number in range(FOLDS)]
    cosines = 1 - distances / 2  # of unit vectors
    metrics = {
        "Accuracy-Flip": float(np.mean(accuracies)),
        "Accuracy-Std": float(np.std(accuracies)),
        **roc_metrics(is_same, cosines),
        **interval_metrics(is_same, cosines, identities),
    }
    arrays = {
        "is_same": is_same,
        "score": cosines,
        "decision": is_correct == is_same,
        "threshold": 1 - THRESHOLDS[best] / 2,
    }
    return metrics, arrays


def roc_metrics(is_same: np.ndarray, scores: np.ndarray) -> Metrics:
    """TAR_at_FAR_..., AUC and EER, fractions, from is_same bool [P] and scores [P], higher for genuine pairs.

    TAR_at_FAR_x: the largest share of genuine pairs accepted by a threshold that accepts at most the share x of
    impostor pairs. AUC and EER: see `area_under` and `equal_error_rate` in eval/metrics.py. All are None if there are
    no genuine or no impostor pairs.
    """
    names = [*(f"TAR_at_FAR_{far}" for far in FARS), "AUC", "EER"]
    if is_same.all() or not is_same.any():
        return dict.fromkeys(names)
    curve = roc_curve(is_same, scores, drop_intermediate=False)
    values = [*(tar_at_far(curve, far)[0] for far in FARS), area_under(curve), equal_error_rate(curve)]
    return dict(zip(names, values, strict=True))


def interval_metrics(is_same: np.ndarray, scores: np.ndarray, identities: np.ndarray | None = None) -> Metrics:
    """Thresholds at the FARs in ALL_FARS, the TARs that `roc_metrics` does not give, and 95 % intervals of both.

    thresh_at_FAR_x: the lowest score that accepts at most the share x of impostor pairs; names with _low and _high: the
    ends of an interval (see `operating_points`). None where the impostor pairs are too few.
    """
    if identities is not None:
        identities = identities.reshape(-1, 2)
    metrics = bootstrap.interval_metrics(is_same, scores, ALL_FARS, identities)
    return {name: value for name, value in metrics.items() if name not in map(bootstrap.tar_name, FARS)}


def discard_curves(arrays: Mapping[str, np.ndarray]) -> dict[float, DiscardCurve]:
    """By FAR, where it can be measured: the error of genuine pairs if those with the smallest norms are discarded.

    arrays: `is_same` bool [P], `score` [P], `norm` [P, 2]. The quality of a pair is the smaller of its two norms.
    """
    is_same, score = arrays["is_same"], arrays["score"]
    if not is_same.any():
        return {}
    roc = roc_curve(is_same, score, drop_intermediate=False)
    quality = arrays["norm"].min(axis=1)[is_same]
    return {
        far: discard_curve(score[is_same] < tar_at_far(roc, far)[1], quality)
        for far in DISCARD_FARS
        if is_measurable(far, np.count_nonzero(~is_same))
    }


def squared_distances(embeddings: np.ndarray) -> np.ndarray:
    """[2P, D] -> float64 [P], ||hat a - hat b||^2 of each pair; an embedding of length 0 stays 0."""
    unit = unit_length(embeddings)
    return np.square(unit[0::2] - unit[1::2]).sum(1)


def one_sided_folds(is_same: np.ndarray) -> list[int]:
    """Numbers, from 1, of the folds that hold only genuine or only impostor pairs, from is_same bool [P]."""
    fold = contiguous_folds(len(is_same), FOLDS)
    labels = [np.unique(is_same[fold == number]) for number in range(FOLDS)]
    return [number for number, fold_labels in enumerate(labels, 1) if len(fold_labels) == 1]


def worst_errors(arrays: Mapping[str, np.ndarray], count: int = ERRORS_SHOWN) -> tuple[np.ndarray, np.ndarray]:
    """(genuine pairs rejected, impostor pairs accepted): the numbers of at most `count` pairs each.

    Pairs whose score is farthest from the threshold of their fold come first.

    arrays: `is_same` and `decision` bool [P], `score` [P], `threshold` [10].
    """
    is_same, decision = arrays["is_same"], arrays["decision"]
    margin = np.abs(arrays["score"] - _threshold_of_pairs(arrays))
    farthest = np.argsort(-margin, kind="stable")
    rejected, accepted = (is_same & ~decision)[farthest], (~is_same & decision)[farthest]
    return farthest[rejected][:count], farthest[accepted][:count]


def _threshold_of_pairs(arrays: Mapping[str, np.ndarray]) -> np.ndarray:
    return arrays["threshold"][contiguous_folds(len(arrays["is_same"]), FOLDS)]


def _open(path: Path) -> VerificationSet | ArrowVerificationSet:
    if path.is_dir():
        pairs = ArrowVerificationSet(path)
        pairs.require_images()
    else:
        pairs = read_bin(path)
    if len(pairs.is_same) < FOLDS:
        raise BinError(f"{path}: {len(pairs.is_same)} pairs; the protocol's {FOLDS} folds need at least one pair each")
    return pairs


def _score(pairs: VerificationSet | ArrowVerificationSet, embeddings: Embeddings) -> tuple[Metrics, Arrays]:
    metrics, arrays = score_pairs(embeddings.features, pairs.is_same, pairs.identities)
    arrays["norm"] = embeddings.norms.reshape(-1, 2)
    curves = discard_curves(arrays)
    areas = {f"EDC_area_at_FAR_{far}": area_up_to(curves[far]) if far in curves else None for far in DISCARD_FARS}
    return {**metrics, **areas, "XNorm": float(embeddings.norms.mean()), **count_pairs(arrays["is_same"])}, arrays


def _warn(pairs: VerificationSet | ArrowVerificationSet) -> list[str]:
    warnings = []
    folds = one_sided_folds(np.asarray(pairs.is_same, dtype=bool))
    if folds:
        numbers = ", ".join(map(str, folds))
        warnings.append(
            f"{len(folds)} of {FOLDS} folds hold only genuine or only impostor pairs (fold {numbers}), so that their "
            "accuracies count one kind of error only; store genuine and impostor pairs in turn"
        )
    sizes = (stated_size(memoryview(pairs.read(position))) for position in range(len(pairs)))
    resized = sum(size not in ((SIZE, SIZE), (0, 0)) for size in sizes)
    if resized:
        warnings.append(
            f"{resized} of {len(pairs)} images are not {SIZE}x{SIZE}: their short side is resized to {SIZE} and the "
            "center is cropped; the results are only valid if the faces fill the images like aligned ones"
        )
    return warnings


def _errors(pairs: VerificationSet | ArrowVerificationSet, arrays: Arrays) -> list[PairError]:
    thresholds = _threshold_of_pairs(arrays)
    errors = []
    for number in map(int, np.concatenate(worst_errors(arrays))):
        first, second = pairs[[2 * number, 2 * number + 1]].numpy()
        score, is_same = float(arrays["score"][number]), bool(arrays["is_same"][number])
        errors.append(PairError(number, first, second, score, float(thresholds[number]), is_same))
    return errors


def _plot_scores(metrics: Metrics, arrays: Arrays) -> "Figure":
    axes = new_axes("cosine of the pair", "density")
    draw_histograms(axes, arrays["is_same"], arrays["score"])
    threshold = arrays["threshold"]
    mean, low, high = threshold.mean(), threshold.min(), threshold.max()
    axes.axvspan(low, high, color="0.75", linewidth=0, zorder=0)
    axes.axvline(mean, color="black", linewidth=1, label=f"threshold {mean:.3f} ({low:.3f} to {high:.3f} over folds)")
    axes.set_ylim(bottom=0)
    return add_legend(axes)


def _plot_roc(metrics: Metrics, arrays: Arrays) -> "Figure":
    is_same = arrays["is_same"]
    tars = {far: metrics.get(f"TAR_at_FAR_{far}") for far in FARS}
    marks = {far: 100 * tar for far, tar in tars.items() if tar is not None}
    name = f"{is_same.sum():,} genuine, {(~is_same).sum():,} impostor pairs"
    return plot_roc(LOWEST_FAR_DRAWN, is_same, {name: (arrays["score"], marks)})


def _plot_norms(metrics: Metrics, arrays: Arrays) -> "Figure":
    norm, wrong = arrays["norm"].min(axis=1), arrays["decision"] != arrays["is_same"]
    return plot_rates_by_norm("smaller embedding norm of the pair", "error rate [%]", norm, wrong)


def _plot_discard(metrics: Metrics, arrays: Arrays) -> "Figure":
    return plot_discard_curves(discard_curves(arrays))


PROTOCOL = Protocol(
    root="rec",
    every="val_eval_every_n_epoch",
    files=("{}.bin", "{}"),
    open=_open,
    score=_score,
    columns=[
        Column("Accuracy-Flip", spread="Accuracy-Std"),
        Column("Accuracy-Mean", " mean", spread="Accuracy-Std"),
        Column("Accuracy-Gap", " gap"),
    ],
    displays={
        "Accuracy-Flip": Display(100, title="accuracy [%] (std over folds)", companion="Accuracy-Std"),
        "Accuracy-Std": Display(100, better=None),
        **bootstrap.interval_displays(ALL_FARS),
        **{f"EDC_area_at_FAR_{far}": Display(100, digits=4, better=min, far=far) for far in DISCARD_FARS},
        "AUC": Display(100),
        "EER": Display(100, better=min),
        "XNorm": Display(digits=4, unit="", title="mean norm of embeddings", better=None),
        **PAIR_COUNTS,
        **rfw.DISPLAYS,
    },
    plots={
        "scores": SetPlot("scores of genuine and impostor pairs, and thresholds", _plot_scores),
        "roc": SetPlot("TAR against FAR", _plot_roc),
        "norm": SetPlot("outcome by embedding norm", _plot_norms),
        "discard": SetPlot("error if pairs with small norms are discarded", _plot_discard),
    },
    step_plots={"accuracy": StepPlot("verification accuracy over steps", "accuracy [%]", {"Accuracy-Flip": ""})},
    warn=_warn,
    errors=_errors,
    decides_pairs=True,
    summaries={"rfw": rfw.summarise},
)
