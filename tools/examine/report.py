"""The findings about a set, by type: their number, and the first few examples."""

from collections.abc import Iterable, Iterator
from itertools import islice

MAX_EXAMPLES = 5


class Report:
    """figures: properties of the set by name; problems, warnings, notes: for each type its count and first examples."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.figures: dict[str, str | float | None] = {}
        self.problems: dict[str, dict] = {}
        self.warnings: dict[str, dict] = {}
        self.notes: dict[str, dict] = {}

    def problem(self, finding: str, examples: Iterable[str], more: int = 0) -> None:
        """Count the `examples` of a problem, and `more` cases without an example. The first examples are kept."""
        _count(self.problems, finding, examples, more)

    def warning(self, finding: str, examples: Iterable[str]) -> None:
        """Do the same for a warning: the set can be used, but its results need care."""
        _count(self.warnings, finding, examples)

    def note(self, finding: str, examples: Iterable[str]) -> None:
        """Do the same for a note: something unusual that is not a problem."""
        _count(self.notes, finding, examples)

    def lines(self) -> Iterator[str]:
        """Yield the lines of the report as text."""
        yield self.source
        yield from (f"  {name.replace('_', ' ')}: {value}" for name, value in self.figures.items())
        for severity, findings in (
            ("problem", self.problems),
            ("warning", self.warnings),
            ("note", self.notes),
        ):
            for finding, counted in findings.items():
                more = ", ..." if counted["count"] > len(counted["examples"]) else ""
                yield f"  {severity}: {finding}: {counted['count']} ({', '.join(counted['examples'])}{more})"
        yield f"types of problems: {len(self.problems)}" if self.problems else "no problems"


def _count(findings: dict[str, dict], finding: str, examples: Iterable[str], more: int = 0) -> None:
    examples = iter(examples)
    counted = findings.get(finding, {"count": 0, "examples": []})
    first = list(islice(examples, MAX_EXAMPLES - len(counted["examples"])))
    counted["examples"] += first
    counted["count"] += len(first) + sum(1 for _ in examples) + more
    if counted["count"]:
        findings[finding] = counted
