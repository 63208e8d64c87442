"""Tables that compare checkpoints or methods, in the layout of published tables."""

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple

from eval.protocol import INTERVAL_ENDS, MEANING_OF_MARK, NOT_MEASURABLE, Column, Display, Metrics
from eval.protocols import PROTOCOLS

# Method, or what else distinguishes rows -> protocol -> set -> metrics.
Methods = Mapping[Hashable, Mapping[str, Mapping[str, Metrics]]]


class Table(NamedTuple):
    """A table of texts.

    best: (row, column) of the cells that are shown in bold, both counted from 0, the header not included.
    """

    title: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]

    @property
    def footnote(self) -> str:
        """The meaning of the mark of values that are not measurable, if there are any."""
        return footnote(cell for row in self.rows for cell in row[1:])


def footnote(cells: Iterable[str]) -> str:
    """The meaning of the mark of values that are not measurable; empty if no cell has it."""
    return MEANING_OF_MARK if any(NOT_MEASURABLE in cell for cell in cells) else ""


class Headline(NamedTuple):
    """A column of a table of methods.

    label: its header; column: the metric that it shows; display and spread_display: how to display the metric and its
    spread; metrics: the metrics of the column's set, by method.
    """

    label: str
    column: Column
    display: Display
    spread_display: Display
    metrics: dict[Hashable, Metrics]

    def values(self) -> dict[Hashable, float | None]:
        """The value of the metric for each method."""
        return {method: metrics.get(self.column.metric) for method, metrics in self.metrics.items()}

    def mark(self, method: Hashable) -> str:
        """The mark of the metric of a method if it is not measurable, or else ""."""
        return self.display.mark(self.metrics[method])

    def cell(self, method: Hashable) -> str:
        """The metric of a method with its spread in brackets; a dash if it is missing."""
        metric, spread = self.column.metric, self.column.spread
        metrics = self.metrics[method]
        in_brackets = f" ({self.spread_display.text(metrics[spread])})" if spread in metrics else ""
        return self.display.text(metrics.get(metric), self.mark(method)) + in_brackets


def headlines(methods: Methods, metrics: Sequence[str] = ()) -> list[Headline]:
    """The columns of a table of methods, without those whose metric no method has.

    metrics: metrics besides those of published tables.
    """
    columns = []
    for name, protocol in PROTOCOLS.items():
        for target in dict.fromkeys(target for metrics in methods.values() for target in metrics.get(name, {})):
            metrics_of_set = {method: metrics.get(name, {}).get(target, {}) for method, metrics in methods.items()}
            more = [Column(metric, f" {metric}") for metric in metrics]
            for column in (*protocol.columns, *more):
                if not any(column.metric in metrics for metrics in metrics_of_set.values()):
                    continue
                displays = protocol.display(column.metric), protocol.display(column.spread)
                columns.append(Headline(_short(target) + column.label, column, *displays, metrics_of_set))
    return columns


def methods_table(title: str, methods: Methods, corner: str, metrics: Sequence[str] = ()) -> Table:
    """A table with one row per method and one column per headline metric and per further metric in `metrics`.

    corner: heads the column of names.
    """
    columns = headlines(methods, metrics)
    rows = [[method, *(column.cell(method) for column in columns)] for method in methods]
    best = set()
    for number, column in enumerate(columns, 1):
        values = list(column.values().values())
        best_value = column.display.best(values)
        best |= {(row, number) for row, value in enumerate(values) if value is not None and value == best_value}
    return Table(title, [corner, *(column.label for column in columns)], rows, best if len(methods) > 1 else set())


def metrics_table(title: str, protocol: str, metrics: Metrics) -> Table:
    """A table with one row per metric of a set."""
    rows = [list(line) for line in list_metrics(protocol, metrics)]
    return Table(title, ["metric", "value", ""], rows, set())


def list_metrics(protocol: str, metrics: Metrics) -> list[tuple[str, str, str]]:
    """(displayed name, displayed value, text in brackets after the value) for each metric of a set."""
    displays = {name: PROTOCOLS[protocol].display(name) for name in metrics}
    companions = {display.companion for display in displays.values()}
    ends = {name: [name + end for end in INTERVAL_ENDS] for name, display in displays.items() if display.has_interval}
    companions.update(*ends.values())
    lines = []
    for name, display in displays.items():
        if name in companions:
            continue
        in_brackets = ""
        if display.companion in metrics:
            value = displays[display.companion].text(metrics[display.companion])
            in_brackets = f" ({' '.join(filter(None, [display.companion_title, value]))})"
        elif metrics[name] is not None and set(ends.get(name, [""])) <= metrics.keys():
            interval = [metrics[end] for end in ends[name]]
            known = any(end is not None for end in interval)
            in_brackets = f" ({' to '.join(map(display.text, interval)) if known else 'no interval'})"
        lines.append((display.label(name), display.text(metrics[name], display.mark(metrics)), in_brackets))
    return lines


def markdown(table: Table) -> str:
    """The table in Markdown, with aligned columns; the best of each column is bold. A footnote may follow."""
    cells = [table.header] + [
        [f"**{cell}**" if (row, column) in table.best else cell for column, cell in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([*lines, *(["", table.footnote] if table.footnote else [])])


def latex(table: Table) -> str:
    """The table in LaTeX, as a tabular with booktabs; the best of each column is bold."""
    lines = [
        [
            rf"\textbf{{{_escape_latex(cell)}}}" if (row, column) in table.best else _escape_latex(cell)
            for column, cell in enumerate(line)
        ]
        for row, line in enumerate(table.rows)
    ]
    width, note = len(table.header), _escape_latex(table.footnote)
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (width - 1)}}}",
            r"\toprule",
            " & ".join(map(_escape_latex, table.header)) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            *([rf"\multicolumn{{{width}}}{{l}}{{\footnotesize {note}}} \\"] if note else []),
            r"\end{tabular}",
        ]
    )


def _escape_latex(text: str) -> str:
    """Escape the special characters, and a `[` or `*` at the start, which LaTeX would read as an option of the line
    break before it."""
    special = {
        "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", NOT_MEASURABLE: r"$^\dagger$",
    }  # fmt: skip
    escaped = re.sub(rf"[\\~^&%$#_{{}}{NOT_MEASURABLE}]", lambda match: special.get(match[0], "\\" + match[0]), text)
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _short(target: str) -> str:
    """The short name of a set for tables: IJBC for IJBC_gt_aligned, tinyface for tinyface_aligned_pad_0.1."""
    return re.sub(r"_(gt_)?aligned.*", "", target)
