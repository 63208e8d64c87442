"""Plots of a scored set and of checkpoints over steps, drawn without pyplot: safe in threads and without a display."""

import re
from collections.abc import Callable, Mapping, Sequence
from io import BytesIO
from operator import itemgetter
from typing import TYPE_CHECKING

import numpy as np

from eval.ijb import VARIANTS
from eval.report.figures import reading
from eval.tinyface import RANKS

if TYPE_CHECKING:  # slow to import, and needed only where something is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Figures = Mapping[str, float | None]
Arrays = Mapping[str, np.ndarray]

# Okabe and Ito's colors, which colorblind readers tell apart, without their yellow, too pale for a line on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
STYLES = ("-", "--", ":")
BINS = 10  # of equal count, by embedding norm
LAST_RANK = 50
FULL_VARIANT = next(iter(VARIANTS))


def set_plots(protocol: str, target: str, figures: Figures, arrays: Arrays) -> "dict[str, Figure]":
    """File stem ("scores_lfw") -> plot, of one scored set; none for a protocol without plots.

    figures: the set's numbers by result name. arrays, by protocol:
    verification: `is_same` bool [P], `score` [P] (cosines), `decision` bool [P] (said to be the same), `threshold` [10]
    (the folds', cosines), `norm` [P, 2]; ijb: `label` bool [P] and, for each of VARIANTS, `<variant>.score` [P];
    tinyface: `rank` int [probes], of the nearest mate, 1 at best, and `norm` [probes].
    """
    return {f"{kind}_{target}": draw(figures, arrays) for kind, draw in _SET_PLOTS.get(protocol, {}).items()}


def step_plots(rows: Sequence[tuple[int, Figures]]) -> "dict[str, Figure]":
    """File stem -> plot over steps, from (step, numbers by "protocol.target.name"); only plots that have a number."""
    plots = {}
    for stem, (pattern, y) in _STEP_PLOTS.items():
        lines: dict[str, list[tuple[int, float]]] = {}
        for step, figures in sorted(rows, key=itemgetter(0)):
            for name, value in figures.items():
                match = re.fullmatch(pattern, name)
                if match and value is not None:
                    target, *fars = match.groups()
                    label = target + "".join(f", FAR {_power(float(far))}" for far in fars)
                    lines.setdefault(label, []).append((step, reading(name.rpartition(f"{target}.")[2]).factor * value))
        if lines:
            plots[stem] = _over_steps(lines, y)
    return plots


def png(figure: "Figure") -> bytes:
    """The plot as a PNG file of 720 x 504 pixels."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def roc(label: np.ndarray, score: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(FAR, TAR), fractions [corners], from label bool [P] and score [P]: a TAR holds from its FAR to the next.

    FARs ascend from 0 to 1. There are no more corners than genuine pairs, however many the impostors are.
    """
    genuine, impostor = np.sort(score[label])[::-1], np.sort(score[~label])
    accepted = len(impostor) - np.searchsorted(impostor, genuine)  # with the threshold at each genuine score
    far = np.concatenate([[0], accepted / max(1, len(impostor)), [1]])
    tar = np.concatenate([[0], np.arange(1, len(genuine) + 1) / max(1, len(genuine)), [1]])
    highest = np.append(far[1:] != far[:-1], True)
    return far[highest], tar[highest]


def wilson(hits: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ends of the 95 % interval of hits / counts, fractions. Wilson, J. Am. Stat. Assoc. 22 (1927)."""
    z = 1.959964
    rate, spread = hits / counts, z * z / counts
    center, half = rate + spread / 2, np.sqrt(spread * rate * (1 - rate) + spread**2 / 4)
    return (center - half) / (1 + spread), (center + half) / (1 + spread)


def _pair_scores(figures: Figures, arrays: Arrays) -> "Figure":
    axes = _axes("cosine of the pair", "density")
    _histograms(axes, arrays["is_same"], arrays["score"])
    threshold = arrays["threshold"]
    mean, low, high = threshold.mean(), threshold.min(), threshold.max()
    axes.axvspan(low, high, color="0.75", linewidth=0, zorder=0)
    axes.axvline(mean, color="black", linewidth=1, label=f"threshold {mean:.3f} ({low:.3f} to {high:.3f} over folds)")
    axes.set_ylim(bottom=0)
    return _with_legend(axes)


def _pair_roc(figures: Figures, arrays: Arrays) -> "Figure":
    is_same = arrays["is_same"]
    marks = {far: 100 * tar for far, tar in _by_far(figures, "TAR_at_FAR_").items()}
    name = f"{is_same.sum():,} genuine, {(~is_same).sum():,} impostor pairs"
    return _roc_plot(1e-4, is_same, {name: (arrays["score"], marks)})


def _pair_norms(figures: Figures, arrays: Arrays) -> "Figure":
    axes = _axes("smaller embedding norm of the pair (ticks: ends of bins of equal count)", "error rate [%]")
    return _rates_by_norm(axes, arrays["norm"].min(axis=1), arrays["decision"] != arrays["is_same"])


def _template_roc(figures: Figures, arrays: Arrays) -> "Figure":
    lines = {name: (arrays[f"{name}.score"], _by_far(figures, f"{name}_tpr_at_fpr_")) for name in VARIANTS}
    return _roc_plot(1e-6, arrays["label"], lines)


def _template_scores(figures: Figures, arrays: Arrays) -> "Figure":
    axes = _axes(f"score, a cosine ({FULL_VARIANT})", "density")
    least = _histograms(axes, arrays["label"], arrays[f"{FULL_VARIANT}.score"])
    axes.set_yscale("log")
    top = axes.get_ylim()[1]
    axes.set_ylim(least / 2, top * (top / least) ** 0.45)  # room above the data for the thresholds' names
    thresholds = _by_far(figures, f"{FULL_VARIANT}_thresh_at_fpr_")
    for row, (far, threshold) in enumerate(sorted(thresholds.items())):  # the higher, the farther right: no text is cut
        end = 0.97 - 0.05 * row
        axes.axvline(threshold, 0, end + 0.02, color="black", linewidth=1, linestyle=":")
        place = dict(transform=axes.get_xaxis_transform(), ha="right", va="center")
        axes.text(threshold, end, f"FAR {_power(far)}: {threshold:.3f} ", **place)
    return _with_legend(axes)


def _cmc(figures: Figures, arrays: Arrays) -> "Figure":
    axes = _axes("rank", "identification rate [%]")
    ranks = np.arange(1, LAST_RANK + 1)
    rates = 100 * (arrays["rank"][:, None] <= ranks).mean(axis=0)
    axes.plot(ranks, rates, color=COLORS[0], label=f"{len(arrays['rank'])} probes")
    for number, k in enumerate(RANKS):
        rate, style = figures[f"rank-{k}"], MARKERS[number]
        axes.plot([k], [rate], style, color=COLORS[number + 1], label=f"rank-{k}: {rate:.2f} %", clip_on=False)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    return _with_legend(axes)


def _probe_norms(figures: Figures, arrays: Arrays) -> "Figure":
    axes = _axes("embedding norm of the probe (ticks: ends of bins of equal count)", "rank-1 identification rate [%]")
    return _rates_by_norm(axes, arrays["norm"], arrays["rank"] == 1)


# A new protocol with plots is one line here.
_SET_PLOTS: dict[str, "dict[str, Callable[[Figures, Arrays], Figure]]"] = {
    "verification": {"scores": _pair_scores, "roc": _pair_roc, "norm": _pair_norms},
    "ijb": {"roc": _template_roc, "scores": _template_scores},
    "tinyface": {"cmc": _cmc, "norm": _probe_norms},
}
# File stem: (names of the numbers: the target and, where there are several, the FAR; y axis).
_STEP_PLOTS = {
    "accuracy": (r"verification\.(.+)\.Accuracy-Flip", "accuracy [%]"),
    "tar": (rf"ijb\.(.+)\.{FULL_VARIANT}_tpr_at_fpr_(0\.0001|1e-05)", f"TAR [%] ({FULL_VARIANT})"),
    "rank": (r"tinyface\.(.+)\.rank-1", "rank-1 identification rate [%]"),
}


def _axes(x: str, y: str) -> "Axes":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.05)
    axes = figure.subplots()
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def _with_legend(axes: "Axes", columns: int = 2) -> "Figure":
    """The legend under the axes, where it hides no data."""
    axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return axes.figure


def _histograms(axes: "Axes", label: np.ndarray, score: np.ndarray) -> float:
    """Densities of genuine (label True) and impostor scores [P] -> the smallest one above 0."""
    bins = int(np.clip(np.sqrt(len(score)), 10, 80))
    span = (float(score.min()), float(score.max()))
    least = np.inf
    for name, which, color in (("genuine", label, COLORS[0]), ("impostor", ~label, COLORS[1])):
        if which.any():
            density, edges = np.histogram(score[which], bins, span, density=True)
            style = dict(fill=True, facecolor=(color, 0.35), edgecolor=color, linewidth=1)
            axes.stairs(density, edges, label=f"{name} ({which.sum():,} pairs)", **style)
            least = min(least, density[density > 0].min())
    return least


def _roc_plot(least: float, label: np.ndarray, lines: dict[str, tuple[np.ndarray, dict[float, float]]]) -> "Figure":
    """TAR against FAR from `least` to 1; lines: name -> (score [P], TARs in percent to mark, by FAR)."""
    axes = _axes("FAR", "TAR [%]")
    axes.set_xscale("log")
    axes.set_xlim(least, 1)
    one = 1 / max(1, np.count_nonzero(~label))
    if one > least:
        axes.axvspan(least, one, color="0.92", linewidth=0, label="fewer than one impostor pair")
    for number, (name, (score, marks)) in enumerate(lines.items()):
        far, tar = roc(label, score)
        start = np.searchsorted(far, least, side="right") - 1  # FAR 0 has no place on a log axis
        style = dict(color=COLORS[number], linestyle=STYLES[number % len(STYLES)], linewidth=1.8)
        axes.step(np.maximum(far[start:], least), 100 * tar[start:], where="post", label=name, **style)
        axes.plot(list(marks), list(marks.values()), MARKERS[number], color=COLORS[number], clip_on=False)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    return _with_legend(axes)


def _rates_by_norm(axes: "Axes", norm: np.ndarray, hit: np.ndarray) -> "Figure":
    """Percentage of `hit`, bool [n], in bins of equal count by `norm` [n], with intervals and counts."""
    order = np.argsort(norm, kind="stable")
    bins = np.array_split(order, min(BINS, len(order)))
    hits, counts = (np.array([part(one) for one in bins]) for part in (lambda one: hit[one].sum(), len))
    rate, (low, high) = hits / counts, wilson(hits, counts)
    places = np.arange(len(bins))
    reach = 100 * np.stack([rate - low, high - rate]).clip(0)  # rounding may leave -1e-17
    name = "rate, 95 % interval and counts"
    axes.errorbar(places, 100 * rate, reach, fmt="o", capsize=3, color=COLORS[0], label=name, clip_on=False)
    for place, some, count, end in zip(places, hits, counts, 100 * high, strict=True):
        above = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.annotate(f"{some}/{count}", (place, end), **above)
    ends = [*(norm[one[0]] for one in bins), norm[order[-1]]]
    axes.set_xticks(np.arange(len(ends)) - 0.5, [f"{end:#.3g}".rstrip(".") for end in ends])
    axes.set_ylim(0, 115 * high.max())
    return _with_legend(axes)


def _over_steps(lines: dict[str, list[tuple[int, float]]], y: str) -> "Figure":
    axes = _axes("step", y)
    for number, (label, points) in enumerate(lines.items()):
        look = number % len(COLORS)
        style = STYLES[number // len(COLORS) % len(STYLES)]
        text = label.replace("$", r"\$")  # else two of them would make it a formula
        axes.plot(*zip(*points, strict=True), color=COLORS[look], marker=MARKERS[look], linestyle=style, label=text)
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.locator_params(axis="x", nbins=6, integer=True)
    return _with_legend(axes, columns=max(1, 70 // (6 + max(map(len, lines)))))


def _by_far(figures: Figures, prefix: str) -> dict[float, float]:
    """{FAR: number} of the numbers whose name is `prefix` and a FAR; without those that do not exist."""
    chosen = {name.removeprefix(prefix): value for name, value in figures.items() if name.startswith(prefix)}
    return {float(far): value for far, value in chosen.items() if value is not None}


def _power(far: float) -> str:
    return f"{far:.0e}".replace("e-0", "e-")
