"""Parts of plots that the protocols compose: axes, legend, histograms, ROC curves, rates by norm, lines over steps.

No function uses pyplot, so all of them work in threads and without a display. Matplotlib is imported only when a plot
is drawn, because its import is slow and most runs draw nothing.
"""

from collections.abc import Mapping, Sequence
from io import BytesIO
from typing import TYPE_CHECKING

import numpy as np

from eval.discard import LARGEST_DISCARD, DiscardCurve, area_up_to
from eval.metrics import is_measurable, roc_corners, wilson_interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of Okabe and Ito, which colour-blind readers can tell apart; their yellow is too pale for lines on white.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^vP*"
STYLES = ("-", "--", ":")
NORM_BINS = 10
LARGEST_DISCARD_DRAWN = 95  # percent; the last few pairs decide the rest


def new_axes(x: str, y: str) -> "Axes":
    """Empty axes with these labels, on a new figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.2))
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.05)
    axes = figure.subplots()
    axes.set_xlabel(x, fontsize=11)
    axes.set_ylabel(y, fontsize=11)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    return axes


def add_legend(axes: "Axes", columns: int = 2) -> "Figure":
    """Add the legend below the axes, where it hides no data, and return the figure."""
    axes.figure.legend(loc="outside lower center", ncols=columns, frameon=False)
    return axes.figure


def to_png(figure: "Figure") -> bytes:
    """The figure as a PNG file of 720 x 504 pixels."""
    file = BytesIO()
    figure.savefig(file, format="png", dpi=120)
    return file.getvalue()


def power_of_ten(rate: float) -> str:
    """A rate as a short text: 1e-4 for 0.0001."""
    return f"{rate:.0e}".replace("e-0", "e-")


def draw_histograms(axes: "Axes", label: np.ndarray, score: np.ndarray) -> float:
    """Draw the densities of genuine (label True) and of impostor scores [P]; return the smallest density above 0."""
    bins = int(np.clip(np.sqrt(len(score)), 10, 80))
    span = (float(score.min()), float(score.max()))
    smallest = np.inf
    for name, members, color in (("genuine", label, COLORS[0]), ("impostor", ~label, COLORS[1])):
        if members.any():
            density, edges = np.histogram(score[members], bins, span, density=True)
            style = dict(fill=True, facecolor=(color, 0.35), edgecolor=color, linewidth=1)
            axes.stairs(density, edges, label=f"{name} ({members.sum():,} pairs)", **style)
            smallest = min(smallest, density[density > 0].min())
    return smallest


def plot_roc(
    lowest_far: float, label: np.ndarray, curves: Mapping[str, tuple[np.ndarray, Mapping[float, float]]]
) -> "Figure":
    """A plot of TAR against FAR, from `lowest_far` to 1.

    label: bool [P]; curves: name -> (score [P], TARs in percent to mark, by FAR). Marks at FARs for which the set has
    too few impostor pairs are hollow.
    """
    axes = new_axes("FAR", "TAR [%]")
    axes.set_xscale("log")
    axes.set_xlim(lowest_far, 1)
    impostors = np.count_nonzero(~label)
    if not is_measurable(lowest_far, impostors):
        name = "not measurable: FAR below 1 / number of impostor pairs"
        axes.axvspan(lowest_far, 1 / max(1, impostors), color="0.92", linewidth=0, label=name)
    for number, (name, (score, marks)) in enumerate(curves.items()):
        far, tar = roc_corners(label, score)
        start = np.searchsorted(far, lowest_far, side="right") - 1  # a logarithmic axis cannot show FAR 0
        style = dict(color=COLORS[number], linestyle=STYLES[number % len(STYLES)], linewidth=1.8)
        axes.step(np.maximum(far[start:], lowest_far), 100 * tar[start:], where="post", label=name, **style)
        axes.plot(list(marks), list(marks.values()), MARKERS[number], color=COLORS[number], clip_on=False)
        hollow = [place for place in marks.items() if not is_measurable(place[0], impostors)]
        filling = dict(marker=MARKERS[number], facecolor="white", edgecolor=COLORS[number], clip_on=False, zorder=3)
        axes.scatter(*np.reshape(hollow, (-1, 2)).T, **filling)
    axes.set_ylim(top=min(axes.get_ylim()[1], 101))
    return add_legend(axes)


def plot_rates_by_norm(x: str, y: str, norm: np.ndarray, hit: np.ndarray) -> "Figure":
    """A plot of the percentage of `hit`, bool [n], in bins of equal count by `norm` [n], with intervals and counts."""
    axes = new_axes(f"{x} (ticks: ends of bins of equal count)", y)
    order = np.argsort(norm, kind="stable")
    bins = np.array_split(order, min(NORM_BINS, len(order)))
    hits, counts = np.array([hit[members].sum() for members in bins]), np.array([len(members) for members in bins])
    rate, (low, high) = hits / counts, wilson_interval(hits, counts)
    places = np.arange(len(bins))
    error_bars = 100 * np.stack([rate - low, high - rate]).clip(0)  # without clip, rounding may give -1e-17
    name = "rate, 95 % interval and counts"
    axes.errorbar(places, 100 * rate, error_bars, fmt="o", capsize=3, color=COLORS[0], label=name, clip_on=False)
    for place, hit_count, count, end in zip(places, hits, counts, 100 * high, strict=True):
        above = dict(xytext=(0, 6), textcoords="offset points", ha="center", fontsize=8)
        axes.annotate(f"{hit_count}/{count}", (place, end), **above)
    ends = [*(norm[members[0]] for members in bins), norm[order[-1]]]
    axes.set_xticks(np.arange(len(ends)) - 0.5, [f"{end:#.3g}".rstrip(".") for end in ends])
    axes.set_ylim(0, 115 * high.max())
    return add_legend(axes)


def plot_discard_curves(curves: Mapping[float, DiscardCurve]) -> "Figure":
    """A plot of error-versus-discard curves, by the FAR of their thresholds, with their areas in the legend."""
    axes = new_axes("discarded genuine pairs [%]", "FNMR of the others [%]")
    axes.axvspan(0, 100 * LARGEST_DISCARD, color="0.92", linewidth=0)
    for number, (far, curve) in enumerate(curves.items()):
        at_random = LARGEST_DISCARD * curve.error[0]
        name = f"FAR {power_of_ten(far)}: area {100 * area_up_to(curve):.4f} % (at random {100 * at_random:.4f} %)"
        style = dict(color=COLORS[number], linestyle=STYLES[number], linewidth=1.8, label=name)
        axes.step(100 * curve.discarded, 100 * curve.error, where="post", **style)
    if not curves:
        axes.plot([], [], color="white", label="not measurable: too few impostor pairs")
    axes.set_xlim(0, LARGEST_DISCARD_DRAWN)
    axes.set_ylim(bottom=0)
    return add_legend(axes, columns=1)


def plot_over_steps(y: str, lines: Mapping[str, Sequence[tuple[int, float]]]) -> "Figure":
    """A plot of lines over steps; lines: label -> (step, value) by step."""
    axes = new_axes("step", y)
    for number, (label, points) in enumerate(lines.items()):
        color = number % len(COLORS)
        style = STYLES[number // len(COLORS) % len(STYLES)]
        text = label.replace("$", r"\$")  # Matplotlib shows text between two dollar signs as a formula
        axes.plot(*zip(*points, strict=True), color=COLORS[color], marker=MARKERS[color], linestyle=style, label=text)
    axes.ticklabel_format(useOffset=False, style="plain")
    axes.locator_params(axis="x", nbins=6, integer=True)
    return add_legend(axes, columns=max(1, 70 // (6 + max(map(len, lines)))))
