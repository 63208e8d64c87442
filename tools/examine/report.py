"""What was found, by kind: counted, and the first few named."""

from collections.abc import Iterable, Iterator
from itertools import islice

EXAMPLES = 5


class Report:
    """Figures of a set by name; by kind, how many problems and notes there are, and the first ones' names."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.figures: dict[str, str | float | None] = {}
        self.problems: dict[str, dict] = {}
        self.notes: dict[str, dict] = {}

    def problem(self, kind: str, names: Iterable[str], more: int = 0) -> None:
        """Count what has this problem, if anything has: `names`, the first few of which are kept, and `more`."""
        _count(self.problems, kind, names, more)

    def note(self, kind: str, names: Iterable[str]) -> None:
        """The same of what is odd, but nothing wrong."""
        _count(self.notes, kind, names)

    def lines(self) -> Iterator[str]:
        """The report to read."""
        yield self.source
        yield from (f"  {name.replace('_', ' ')}: {value}" for name, value in self.figures.items())
        for word, kinds in (("problem", self.problems), ("note", self.notes)):
            for kind, found in kinds.items():
                more = ", ..." if found["count"] > len(found["examples"]) else ""
                yield f"  {word}: {kind}: {found['count']} ({', '.join(found['examples'])}{more})"
        yield f"kinds of problem: {len(self.problems)}" if self.problems else "nothing wrong"


def _count(kinds: dict[str, dict], kind: str, names: Iterable[str], more: int = 0) -> None:
    names = iter(names)
    found = kinds.get(kind, {"count": 0, "examples": []})
    first = list(islice(names, EXAMPLES - len(found["examples"])))
    found["examples"] += first
    found["count"] += len(first) + sum(1 for _ in names) + more
    if found["count"]:
        kinds[kind] = found
