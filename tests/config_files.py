"""Helpers of the tests of the config: presets written on the fly, and the presets of the repository."""

import ast
from pathlib import Path

from config import BASE

PRESETS = [
    path
    for path in sorted(BASE.parent.glob("*.py"))
    if any(isinstance(node, ast.Name) and node.id == "preset" for node in ast.walk(ast.parse(path.read_text())))
]


def write_file(path: Path, text: str) -> Path:
    path.write_text(text)
    return path
