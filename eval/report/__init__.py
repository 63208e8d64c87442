"""The output of an evaluation: text on the screen, result files, tables, plots, and report.html.

The tables, plots and files follow from the descriptions of the protocols (eval/protocol.py). Nothing in this folder
depends on a particular benchmark.
"""

from eval.report.results import (
    format_results,
    metrics_by_set,
    read_csv,
    read_json,
    refuse_to_overwrite,
    write_collected_json,
    write_csv,
    write_json,
    write_rows,
)
from eval.report.tables import Table, headlines, latex, markdown, methods_table
from eval.report.writing import ScoredCheckpoint, notes_on, write_report

__all__ = [
    "ScoredCheckpoint",
    "Table",
    "format_results",
    "headlines",
    "latex",
    "markdown",
    "methods_table",
    "metrics_by_set",
    "notes_on",
    "read_csv",
    "read_json",
    "refuse_to_overwrite",
    "write_collected_json",
    "write_csv",
    "write_json",
    "write_report",
    "write_rows",
]
