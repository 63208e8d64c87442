"""What the suite of faults shares: its two forms, and the table of what was tried and what survived.

The short form runs with all other tests. The long form: FAULTS=long ./run_tests.sh tests/faults
"""

import os
from collections.abc import Callable

import pytest

LONG = os.environ.get("FAULTS", "") == "long"


def size(short: int, long: int) -> int:
    """How often to try, in the form that runs."""
    return long if LONG else short


@pytest.fixture
def tried(record_property: Callable[[str, object], None]) -> Callable[[str, int, int], None]:
    """tried(what, times, survived): a line of the table; fails the test where not all survived."""

    def add(what: str, times: int, survived: int) -> None:
        record_property("tried", (what, times, survived))
        assert survived == times, f"{what}: {survived} of {times} survived"

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    reports = [report for kind in ("passed", "failed") for report in terminalreporter.stats.get(kind, [])]
    rows = [value for report in reports for name, value in report.user_properties if name == "tried"]
    if rows:
        terminalreporter.section(f"faults, {'long' if LONG else 'short'} form: tried, survived")
        for what, times, survived in sorted(rows):
            terminalreporter.write_line(f"{times:>8,} {survived:>8,}  {what}")
