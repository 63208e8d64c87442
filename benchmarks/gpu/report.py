"""The report of benchmarks/on_gpu.sh: report.md and results.json, from the tables that the parts printed."""

import importlib.util
import itertools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu.parts import Part
from utils.files import write_text

ROOT = Path(__file__).resolve().parent.parent.parent
# Of packages that are imported by another name.
IMPORT_NAMES = {"opencv-python-headless": "cv2", "scikit-learn": "sklearn", "pyyaml": "yaml"}


class Report:
    """The results so far, in OUT/report.md and OUT/results.json. entries: one dict per part, in the order of parts."""

    def __init__(self, out: Path, parts: Sequence[Part]) -> None:
        self.out, self.parts = out, parts
        self.entries: list[dict[str, Any]] = [
            {"part": part.name, "title": part.title, "result": "not run", "seconds": None, "reason": "", "command": ""}
            for part in parts
        ]

    @property
    def machine(self) -> dict[str, str]:
        """The packages that are missing, and the facts of the table that the part `machine` prints, by name."""
        table = next(iter(self._tables("machine")), [])
        facts = {row["fact"]: row["value"] for row in table}
        return {**facts, "missing packages": ", ".join(missing_packages()) or "none"}

    def record(self, number: int, **values: Any) -> None:
        """Set values of the entry of part `number`, and write the files."""
        self.entries[number].update(values)
        self.write()

    def write(self) -> None:
        """Write both files. Each is replaced as a whole, so it is complete at any time."""
        content = [{**entry, "tables": self._tables(entry["part"])} for entry in self.entries]
        results = {"machine": self.machine, "parts": content}
        write_text(self.out / "results.json", json.dumps(results, indent=1, ensure_ascii=False) + "\n")
        write_text(self.out / "report.md", self._page())

    def _page(self) -> str:
        lines = ["# Training on this machine", "", "| fact | value |", "|---|---|"]
        lines += [f"| {fact} | {value} |" for fact, value in self.machine.items()]
        lines += ["", "| part | result | seconds | title |", "|---|---|---|---|"]
        for entry in self.entries:
            seconds = "" if entry["seconds"] is None else f"{entry['seconds']:.0f}"
            reason = f": {entry['reason']}" if entry["reason"] else ""
            lines.append(f"| {entry['part']} | {entry['result']}{_in_cell(reason)} | {seconds} | {entry['title']} |")
        for entry in self.entries[1:]:
            if shown := _shown(self._log(entry["part"])):
                lines += ["", f"## {entry['part']}: {entry['title']}", "", f"`{entry['command']}`", "", *shown]
        return "\n".join(lines) + "\n"

    def _tables(self, name: str) -> list[list[dict[str, str]]]:
        """The tables that a part printed: for each row, its cells by the names in the header."""
        groups = re.findall(r"(?:^\|.*\n?)+", "\n".join(_shown(self._log(name))), re.MULTILINE)
        tables = [[_cells(line) for line in group.splitlines()] for group in groups]
        return [[dict(zip(head, row, strict=False)) for row in rows] for head, _, *rows in tables if rows]

    def _log(self, name: str) -> list[str]:
        path = self.out / f"{name}.log"
        return path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []


def missing_packages() -> list[str]:
    """The lines of requirements/requirement.txt whose package cannot be imported."""
    text = (ROOT / "requirements" / "requirement.txt").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    names = [re.match(r"[\w-]+", line)[0] for line in lines]
    found = [importlib.util.find_spec(IMPORT_NAMES.get(name, name)) is not None for name in names]
    return [line for line, is_there in zip(lines, found, strict=True) if not is_there]


def _shown(log: Sequence[str]) -> list[str]:
    """The lines of a log that belong into the report: the rows of tables, and blocks in fences."""
    shown: list[str] = []
    in_fence = False
    for line, following in itertools.zip_longest(log, log[1:], fillvalue=""):
        fence = line.startswith("```")
        begins = (fence and not in_fence) or (line.startswith("|") and following.startswith("|---"))
        if begins and shown:
            shown.append("")
        if line.startswith("|") or fence or in_fence:
            shown.append(line)
        in_fence ^= fence
    return [*shown, "```"] if in_fence else shown  # the part may have ended inside a block


def _cells(row: str) -> list[str]:
    return [cell.strip() for cell in row.strip().removeprefix("|").removesuffix("|").split("|")]


def _in_cell(text: str) -> str:
    return text.replace("|", "\\|")
