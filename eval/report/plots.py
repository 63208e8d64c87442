"""All plots of a scored set, and plots of several checkpoints over steps, as the protocols describe them."""

from collections.abc import Mapping, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, NamedTuple

from eval.drawing import plot_over_steps
from eval.protocol import Arrays, Metrics, StepPlot
from eval.protocols import PROTOCOLS

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MetricsByStep = Sequence[tuple[int, Mapping[str, Mapping[str, Metrics]]]]


class Plot(NamedTuple):
    """A plot with its caption, which is also the title of the figure."""

    caption: str
    figure: "Figure"


def _titled(caption: str, figure: "Figure") -> Plot:
    """A plot whose figure has its caption as the title."""
    title = caption.replace("$", r"\$")  # Matplotlib shows text between two dollar signs as a formula
    figure.suptitle(title, fontsize=11, wrap=True)
    return Plot(caption, figure)


def set_plots(protocol: str, target: str, metrics: Metrics, arrays: Arrays) -> dict[str, Plot]:
    """The plots of one scored set, by file name without extension, such as "scores_lfw"."""
    return {
        f"{stem}_{target}": _titled(f"{target}: {plot.caption}", plot.draw(metrics, arrays))
        for stem, plot in PROTOCOLS[protocol].plots.items()
    }


def step_plots(rows: MetricsByStep) -> dict[str, Plot]:
    """The plots over steps, by file name without extension, from (step, protocol -> set -> metric -> value).

    A plot without any value is left out.
    """
    plots = {}
    for name, protocol in PROTOCOLS.items():
        for stem, plot in protocol.step_plots.items():
            lines = _lines(rows, name, plot)
            if lines:
                plots[stem] = _titled(plot.caption, plot_over_steps(plot.y, lines))
    return plots


def _lines(rows: MetricsByStep, protocol: str, plot: StepPlot) -> dict[str, list[tuple[int, float]]]:
    """Label -> (step, displayed value), in the order of steps."""
    lines: dict[str, list[tuple[int, float]]] = {}
    not_measurable = set()
    for step, metrics in sorted(rows, key=itemgetter(0)):
        for target, values in metrics.get(protocol, {}).items():
            for metric, label in plot.lines.items():
                if values.get(metric) is not None:
                    display = PROTOCOLS[protocol].display(metric)
                    lines.setdefault(target + label, []).append((step, display.scale * values[metric]))
                    if display.mark(values):
                        not_measurable.add(target + label)
    return {label + ", not measurable" * (label in not_measurable): points for label, points in lines.items()}
