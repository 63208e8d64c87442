"""Tables that set checkpoints or methods side by side, in the layout of published ones."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from eval.page import Table
from eval.protocols import PROTOCOLS, Figures

_LOWER_IS_BETTER = ("EER",)
_NO_BEST = ("Accuracy-Std", "XNorm")  # and thresholds


class Headline(NamedTuple):
    """A column of a table of methods: its label, its value in percent and its spread by method."""

    label: str
    values: dict[str, float | None]
    spreads: dict[str, float | None]


def headlines(methods: Mapping[str, Mapping[str, Mapping[str, Figures]]]) -> dict[tuple[str, str, str], Headline]:
    """(protocol, target, figure) -> column, from method -> protocol -> target -> figures."""
    columns: dict[tuple[str, str, str], Headline] = {}
    for protocol, entry in PROTOCOLS.items():
        for target in dict.fromkeys(target for figures in methods.values() for target in figures.get(protocol, {})):
            for column in entry.columns:
                found = {name: figures.get(protocol, {}).get(target, {}) for name, figures in methods.items()}
                values = {name: figures.get(column.figure) for name, figures in found.items()}
                spreads = {name: figures.get(column.spread) for name, figures in found.items()}
                columns[protocol, target, column.figure] = Headline(
                    _short(target) + column.label, *(_times(part, column.factor) for part in (values, spreads))
                )
    return columns


def methods_table(title: str, methods: Mapping[str, Mapping[str, Mapping[str, Figures]]], corner: str) -> Table:
    """A row a method, a column a headline figure in percent; a dash for what is not there. `corner` heads the names."""
    columns = headlines(methods)
    rows = [
        [name, *(_cell(column.values[name], column.spreads[name]) for column in columns.values())] for name in methods
    ]
    marked = set()
    for number, ((_, _, figure), column) in enumerate(columns.items(), 1):
        values = list(column.values.values())
        top = best(figure, values)
        marked |= {(row, number) for row, value in enumerate(values) if value is not None and value == top}
    header = [corner, *(column.label for column in columns.values())]
    return Table(title, header, rows, marked if len(methods) > 1 else set())


def best(figure: str, values: list[float | None]) -> float | None:
    """The best of a figure's values, by its name; None where none is better than another."""
    there = [value for value in values if value is not None]
    if not there or "_thresh_at_" in figure or figure.endswith(_NO_BEST):
        return None
    return (min if figure.endswith(_LOWER_IS_BETTER) else max)(there)


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


def _times(values: dict[str, float | None], factor: float) -> dict[str, float | None]:
    return {name: None if value is None else factor * value for name, value in values.items()}


def _cell(value: float | None, spread: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2f}" + ("" if spread is None else f" ({spread:.2f})")
