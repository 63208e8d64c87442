"""Tables that set checkpoints or methods side by side, in the layout of published ones."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from eval.protocols import PROTOCOLS, Column, Figures
from eval.report.figures import reading, text


class Table(NamedTuple):
    """best: (row, column) of the cells in bold, counted from 0, the header apart."""

    title: str
    header: list[str]
    rows: list[list[str]]
    best: set[tuple[int, int]]


class Headline(NamedTuple):
    """A column of a table of methods: its label, the figure that it shows, and the figures of its set by method."""

    label: str
    column: Column
    found: dict[str, Figures]

    def values(self) -> dict[str, float | None]:
        """The figure by method."""
        return {name: figures.get(self.column.figure) for name, figures in self.found.items()}

    def cell(self, name: str) -> str:
        """The figure of a method, and its spread in brackets; a dash for what is not there."""
        figure, spread = self.column.figure, self.column.spread
        figures = self.found[name]
        beside = f" ({text(spread, figures[spread])})" if spread in figures else ""
        return text(figure, figures.get(figure)) + beside


def headlines(methods: Mapping[str, Mapping[str, Mapping[str, Figures]]]) -> list[Headline]:
    """The columns of a table of methods, from method -> protocol -> target -> figures."""
    columns = []
    for protocol, entry in PROTOCOLS.items():
        for target in dict.fromkeys(target for figures in methods.values() for target in figures.get(protocol, {})):
            found = {name: figures.get(protocol, {}).get(target, {}) for name, figures in methods.items()}
            columns += [Headline(_short(target) + column.label, column, found) for column in entry.columns]
    return columns


def methods_table(title: str, methods: Mapping[str, Mapping[str, Mapping[str, Figures]]], corner: str) -> Table:
    """A row a method, a column a headline figure in percent. `corner` heads the names."""
    columns = headlines(methods)
    rows = [[name, *(column.cell(name) for column in columns)] for name in methods]
    marked = set()
    for number, column in enumerate(columns, 1):
        values = list(column.values().values())
        top = best(column.column.figure, values)
        marked |= {(row, number) for row, value in enumerate(values) if value is not None and value == top}
    return Table(title, [corner, *(column.label for column in columns)], rows, marked if len(methods) > 1 else set())


def best(figure: str, values: list[float | None]) -> float | None:
    """The best of a figure's values, by its name within a set; None where none is better than another."""
    better, there = reading(figure).better, [value for value in values if value is not None]
    return better(there) if better and there else None


def markdown(table: Table) -> str:
    """Aligned; the best of a column is bold."""
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
    """A tabular for booktabs; the best of a column is bold."""
    lines = [
        [
            rf"\textbf{{{_escaped(cell)}}}" if (row, column) in table.best else _escaped(cell)
            for column, cell in enumerate(line)
        ]
        for row, line in enumerate(table.rows)
    ]
    return "\n".join(
        [
            rf"\begin{{tabular}}{{l{'r' * (len(table.header) - 1)}}}",
            r"\toprule",
            " & ".join(map(_escaped, table.header)) + r" \\",
            r"\midrule",
            *(" & ".join(line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


def _escaped(text: str) -> str:
    """Also a `[` or `*` at the start: after a line's end LaTeX would take it for an option."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    escaped = re.sub(r"[\\~^&%$#_{}]", lambda match: special.get(match[0], "\\" + match[0]), text)
    return "{}" + escaped if escaped.startswith(("[", "*")) else escaped


def _short(target: str) -> str:
    """IJBC for IJBC_gt_aligned, tinyface for tinyface_aligned_pad_0.1: how tables call the set."""
    return re.sub(r"_(gt_)?aligned.*", "", target)
