"""Write docs/config.md from the defaults in config/config.py, the table in config/rules.py and the presets.

Usage: python docs/write_config_page.py
"""

import argparse
import ast
import runpy
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from config import BASE
from config.conflicts import DISTILLATION
from config.rule import Rule
from config.rules import BENCHMARK_DEFAULTS, MAY_CHANGE, RULES, SECTIONS

PAGE = ROOT / "docs" / "config.md"


def page() -> str:
    """Return the text of docs/config.md."""
    variables = runpy.run_path(str(BASE))
    parts = [
        "# Config",
        "<!-- Written by docs/write_config_page.py; do not edit. -->",
        "[`config/config.py`](../config/config.py) begins with this explanation:",
        "\n".join(f"> {line}".rstrip() for line in variables["__doc__"].strip().splitlines()),
        "A key that is unknown, a value that is not allowed and keys that contradict each other end a script before "
        "it opens any data. The message names the key, the allowed values and what to do. A run writes its config, "
        "with all keys, to `config.py` in its `output` folder; that file is a preset that repeats the run.",
        "## Keys",
        *(_section(name, rules, variables["config"]) for name, rules in SECTIONS.items()),
        _more_benchmarks(),
        "## Refused combinations",
        "\n".join(f"- {conflict.message}." for conflict in DISTILLATION),
        "## Keys that may change when a run is resumed",
        "All other keys are part of the method: if one of them changes, resuming is refused. "
        "(`train_standalone.py` does not compare the keys of the teacher, the centers, the geometry term and the "
        "feature loss, which it does not use.) The number of images per step, the teacher and the training set must "
        "also be the same, even if the keys that name them change. They are compared by content: the teacher by the "
        "checksums of its weights and of the projection of its embeddings, the training set by its index and up to "
        "1,024 of its images. So both may be moved. The log names each change, except those of `output`, `resume` and "
        "`global_step`.",
        ", ".join(f"`{key}`" for key in RULES if key in MAY_CHANGE) + ".",
        "## Presets",
        "To use a preset, name it: `--config config/lfw.py`. A preset with bases is applied on top of them.",
        _table(["preset", "base", "what it is"], [_preset_row(path) for path in preset_files()]),
        "## Data sets",
        "The entries of `datasets` in `config/config.py`, one of which `dataset` names.",
        _table(["dataset", "values"], [_dataset_row(*entry) for entry in variables["datasets"].items()]),
    ]
    return "\n\n".join(parts) + "\n"


def preset_files() -> list[Path]:
    """Return the files beside config.py that define a variable `preset`, in alphabetical order."""
    return [path for path in sorted(BASE.parent.glob("*.py")) if "preset" in _assigned(path)]


def _assigned(path: Path) -> dict[str, ast.expr]:
    """Return the variables that a file assigns at its top level, with their expressions."""
    nodes = (node for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign))
    return {target.id: node.value for node in nodes for target in node.targets if isinstance(target, ast.Name)}


def _section(name: str, rules: dict[str, Rule], defaults: dict[str, Any]) -> str:
    rows = [[f"`{key}`", _code(defaults[key]), rule.allowed, rule.meaning] for key, rule in rules.items()]
    return f"### {name.capitalize()}\n\n" + _table(["key", "default", "allowed values", "meaning"], rows)


def _more_benchmarks() -> str:
    keys = ", ".join(f"`NAME_{setting}` ({_code(default)})" for setting, default in BENCHMARK_DEFAULTS.items())
    return (
        "A benchmark that is listed in `PROTOCOLS` of `config/names.py` but has no keys above gets keys that start "
        f"with its own name, with these defaults: {keys}."
    )


def _preset_row(path: Path) -> list[str]:
    base = ast.literal_eval(_assigned(path).get("base", ast.List([])))
    bases = ", ".join(f"`{name}`" for name in ([base] if isinstance(base, str) else base))
    summary = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))).splitlines()[0]
    return [f"`{path.name}`", bases, summary]


def _dataset_row(name: str, values: dict[str, Any]) -> list[str]:
    return [f"`{name}`", ", ".join(f"`{key}` {_code(value)}" for key, value in values.items()) or "none"]


def _code(value: Any) -> str:
    return f"`{value!r}`".replace("'", '"')


def _table(head: list[str], rows: Iterable[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [head, ["---"] * len(head), *rows])


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__).parse_args()
    PAGE.write_text(page(), encoding="utf-8")
