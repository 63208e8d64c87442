"""Tables that compare checkpoints or methods, in the layout of published ones."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from eval.protocol import Column, Display, Metrics
from eval.protocols import PROTOCOLS

# Method -> protocol -> set -> metrics.
Methods = Mapping[str, Mapping[str, Mapping[str, Metrics]]]


class Table(NamedTuple):
    """best: (row, column) of the cells in bold, counted from 0 without the header."""

    title: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


class Headline(NamedTuple):
    """A column of a table of methods: its label, the metric that it shows and how, and its set's metrics by method."""

    label: str
    column: Column
    display: Display
    spread_display: Display
    metrics: dict[str, Metrics]

    def values(self) -> dict[str, float | None]:
        """The metric by method."""
        return {method: metrics.get(self.column.metric) for method, metrics in self.metrics.items()}

    def cell(self, method: str) -> str:
        """The metric of a method with its spread in brackets; a dash if it is missing."""
        metric, spread = self.column.metric, self.column.spread
        metrics = self.metrics[method]
        in_brackets = f" ({self.spread_display.text(metrics[spread])})" if spread in metrics else ""
        return self.display.text(metrics.get(metric)) + in_brackets


def headlines(methods: Methods) -> list[Headline]:
    """The columns of a table of methods."""
    columns = []
    for name, protocol in PROTOCOLS.items():
        for target in dict.fromkeys(target for metrics in methods.values() for target in metrics.get(name, {})):
            of_set = {method: metrics.get(name, {}).get(target, {}) for method, metrics in methods.items()}
            for column in protocol.columns:
                displays = protocol.display(column.metric), protocol.display(column.spread)
                columns.append(Headline(_short(target) + column.label, column, *displays, of_set))
    return columns


def methods_table(title: str, methods: Methods, corner: str) -> Table:
    """A table with one row per method and one column per headline metric; `corner` heads the column of names."""
    columns = headlines(methods)
    rows = [[method, *(column.cell(method) for column in columns)] for method in methods]
    best = set()
    for number, column in enumerate(columns, 1):
        values = list(column.values().values())
        top = column.display.best(values)
        best |= {(row, number) for row, value in enumerate(values) if value is not None and value == top}
    return Table(title, [corner, *(column.label for column in columns)], rows, best if len(methods) > 1 else set())


def metrics_table(title: str, protocol: str, metrics: Metrics) -> Table:
    """A table with one row per metric of a set."""
    rows = [list(line) for line in list_metrics(protocol, metrics)]
    return Table(title, ["metric", "value", ""], rows, set())


def list_metrics(protocol: str, metrics: Metrics) -> list[tuple[str, str, str]]:
    """(name, value, what follows in brackets) of each metric of a set, as people read them."""
    displays = {name: PROTOCOLS[protocol].display(name) for name in metrics}
    companions = {display.companion for display in displays.values()}
    lines = []
    for name, display in displays.items():
        if name in companions:
            continue
        in_brackets = ""
        if display.companion in metrics:
            value = displays[display.companion].text(metrics[display.companion])
            in_brackets = f" ({' '.join(filter(None, [display.companion_title, value]))})"
        lines.append((display.label(name), display.text(metrics[name]), in_brackets))
    return lines


def markdown(table: Table) -> str:
    """The table in Markdown, aligned; the best of each column is bold."""
    cells = [table.header] + [
        [f"**{cell}**" if (row, column) in table.best else cell for column, cell in enumerate(line)]
        for row, line in enumerate(table.rows)
    ]
    cells = [[cell.replace("|", "\\|") for cell in line] for line in cells]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |" for line in cells]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def latex(table: Table) -> str:
    """The table in LaTeX, a tabular for booktabs; the best of each column is bold."""
    lines = [
        [
            rf"\textbf{{{_escape_latex(cell)}}}" if (row, column) in table.best else _escape_latex(cell)
            for column, cell in enumerate(line)
        ]
        for row, line in enumerate(table.rows)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escape_latex, table.header)) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _escape_latex(text: str) -> str:
    """Also escapes a `[` or `*` at the start, which LaTeX would take for an option of the line break before it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = re.sub(r"[\\~^&%$#_{}]", lambda match: special.get(match[0], "\\" + match[0]), text)
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _short(target: str) -> str:
    """The name of a set in tables: IJBC for IJBC_gt_aligned, tinyface for tinyface_aligned_pad_0.1."""
    return re.sub(r"_(gt_)?aligned.*", "", target)
