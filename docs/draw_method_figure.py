"""Draw docs/images/method.png: the path of the center update and the path of the margin (see docs/method.md).

Usage: python docs/draw_method_figure.py
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch

OUTPUT = Path(__file__).resolve().parent / "images" / "method.png"

# Okabe and Ito's palette, which colour-blind readers can distinguish. The line styles differ as well.
BLUE, VERMILION, GREY, INK = "#0072B2", "#D55E00", "#707070", "#1A1A1A"
PALE_BLUE, PALE_VERMILION, PALE_GREY = "#E8F2F9", "#FCEEE5", "#F2F2F2"
SOFT_VERMILION = "#EDA77A"

CENTER = {"color": BLUE, "linestyle": (0, (5, 2)), "linewidth": 1.8}
MARGIN = {"color": VERMILION, "linestyle": "-", "linewidth": 1.8}
CONSTANT = {"color": GREY, "linestyle": (0, (1, 1.2)), "linewidth": 1.8}
INPUT = {"color": INK, "linestyle": "-", "linewidth": 1.2}
GRADIENT = {"color": SOFT_VERMILION, "linestyle": "-", "linewidth": 5.0}


def box(ax: Axes, x: tuple[float, float], y: tuple[float, float], title: str, lines: list[str], edge: str, fill: str):
    """Draw a rounded box from x = (left, right) and y = (bottom, top), with a bold title above its lines."""
    ax.add_patch(
        FancyBboxPatch(
            (x[0], y[0]),
            x[1] - x[0],
            y[1] - y[0],
            boxstyle="round,pad=0,rounding_size=1.2",
            facecolor=fill,
            edgecolor=edge,
            linewidth=1.6,
        )
    )
    middle = (x[0] + x[1]) / 2
    rows = 1 + len(lines)
    top = (y[0] + y[1]) / 2 + 1.55 * (rows - 1)
    ax.text(middle, top, title, ha="center", va="center", fontsize=11, fontweight="bold", color=INK)
    for row, line in enumerate(lines, start=1):
        ax.text(middle, top - 3.1 * row, line, ha="center", va="center", fontsize=11, color=INK)


def arrow(ax: Axes, points: list[tuple[float, float]], style: dict, head: float = 13):
    """Draw a line through the points, with an arrowhead at the last one. The line ends inside the head."""
    (x, y), (tip_x, tip_y) = points[-2:]
    length = ((tip_x - x) ** 2 + (tip_y - y) ** 2) ** 0.5
    back = 0.07 * head / length
    neck = (tip_x - back * (tip_x - x), tip_y - back * (tip_y - y))
    ax.plot(*zip(*points[:-1], neck, strict=True), solid_capstyle="butt", dash_capstyle="butt", **style)
    ax.add_patch(
        FancyArrowPatch(
            neck,
            points[-1],
            arrowstyle="-|>",
            mutation_scale=head,
            shrinkA=0,
            shrinkB=0,
            color=style["color"],
            linewidth=1,
            joinstyle="miter",
        )
    )


def label(ax: Axes, x: float, y: float, text: str, color: str, align: str = "center"):
    """Write a text at x, y."""
    ax.text(x, y, text, ha=align, va="center", fontsize=11, color=color)


def draw_boxes(ax: Axes):
    """Draw the boxes with their formulas."""
    box(ax, (1, 11), (29, 37), "image", ["label $y$"], INK, PALE_GREY)
    box(ax, (17, 31), (51, 60), "teacher", ["frozen"], GREY, PALE_GREY)
    box(ax, (17, 31), (7, 16), "student", ["trained"], VERMILION, PALE_VERMILION)
    update = r"$w_y \leftarrow \alpha\, w_y + (1 - \alpha)\, \hat f_t$"
    box(ax, (44, 86), (50, 61), "class centers: a buffer, no gradient", [update], BLUE, PALE_BLUE)
    measures = [
        r"$\mathrm{conf}_t = \cos(w_y, f_t)$",
        r"$\mathrm{cos}_{st} = \cos(f_s, f_t)$",
        r"$\alpha = \mathrm{cos}_{st}\,\mathrm{conf}_t$",
        r"$P = k\,\mathrm{relu}(\mathrm{conf}_t - \mathrm{cos}_{st})\,\mathrm{conf}_t$",
    ]
    box(ax, (34.5, 61), (24, 42), "measured (constants)", measures, GREY, PALE_GREY)
    margin = [
        r"$z = \mathrm{clamp}(h\,(n - \mu)\,/\,\sigma + \mathrm{geo})$",
        r"target: $\cos(\theta - m\,z) - (m + m\,z)$",
        r"loss: cross-entropy of $s\,\cdot\,$cosines",
    ]
    box(ax, (67, 95), (26, 41), "margin", margin, VERMILION, PALE_VERMILION)
    cosines = [r"$\hat f_s$ with every $\hat w_c$", "after the update"]
    box(ax, (67, 90), (5.5, 17.5), "cosines", cosines, VERMILION, PALE_VERMILION)


def draw_arrows(ax: Axes):
    """Draw the paths between the boxes, and the legend."""
    arrow(ax, [(11, 34.5), (14, 34.5), (14, 55.5), (17, 55.5)], INPUT)
    arrow(ax, [(11, 31.5), (14, 31.5), (14, 11.5), (17, 11.5)], INPUT)

    # The center update path: teacher -> centers -> cosines.
    arrow(ax, [(31, 55.5), (44, 55.5)], CENTER)
    label(ax, 37.5, 57.7, "$f_t$", BLUE)
    arrow(ax, [(57, 42), (57, 50)], CENTER)
    label(ax, 58, 46, r"$\alpha$", BLUE, "left")
    arrow(ax, [(86, 55.5), (97.5, 55.5), (97.5, 11.5), (90, 11.5)], CENTER)
    label(ax, 96.3, 46, "centers, detached", BLUE, "right")

    # The measured values, passed on without a gradient.
    arrow(ax, [(24, 51), (24, 37), (34.5, 37)], CONSTANT)
    label(ax, 25, 44, "$f_t$", GREY, "left")
    arrow(ax, [(24, 16), (24, 29), (34.5, 29)], CONSTANT)
    label(ax, 25, 22, "$f_s$", GREY, "left")
    arrow(ax, [(46, 50), (46, 42)], CONSTANT)
    label(ax, 45, 46, "old $w_y$", GREY, "right")
    arrow(ax, [(61, 35), (67, 35)], CONSTANT)
    label(ax, 64, 37.2, "geo", GREY)
    arrow(ax, [(31, 15), (64, 15), (64, 29.5), (67, 29.5)], CONSTANT)
    label(ax, 47, 17.2, r"$n = \Vert f_s \Vert$", GREY)

    # The margin path: forward, and its gradient.
    arrow(ax, [(31, 11.2), (67, 11.2)], MARGIN)
    label(ax, 59, 13.1, r"$f_s$", VERMILION)
    arrow(ax, [(77, 17.5), (77, 26)], MARGIN)
    arrow(ax, [(82, 26), (82, 17.8)], GRADIENT, head=26)
    arrow(ax, [(67, 8.6), (31.3, 8.6)], GRADIENT, head=26)
    label(ax, 49.5, 5.8, r"gradient, through $\hat f_s$ only", VERMILION)
    label(ax, 83.5, 21.8, "gradient", VERMILION, "left")

    legend = [
        (1, CENTER, "center update"),
        (27, MARGIN, "margin path"),
        (46, GRADIENT, "gradient to the student"),
        (75, CONSTANT, "constant, no gradient"),
    ]
    for x, style, text in legend:
        arrow(ax, [(x, 1), (x + 5.5, 1)], style, head=26 if style is GRADIENT else 13)
        label(ax, x + 6.7, 1, text, INK, "left")


def main():
    plt.rcParams.update(
        {"font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "mathtext.fontset": "dejavusans"}
    )
    figure = plt.figure(figsize=(10, 6.4), facecolor="white")
    ax = figure.add_axes((0, 0, 1, 1))
    ax.set_xlim(-0.5, 99.5)
    ax.set_ylim(-1.5, 62.5)
    ax.axis("off")
    draw_boxes(ax)
    draw_arrows(ax)
    OUTPUT.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(OUTPUT, dpi=160, metadata={"Software": None})
    print(OUTPUT)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    main()
