"""Nothing in the code is newer than the oldest Python that the README names."""

import ast
import re
from pathlib import Path

import pytest
from conftest import ROOT

OLDEST = tuple(map(int, re.search(r"You need Python (\d)\.(\d+) to", (ROOT / "README.md").read_text()).groups()))
# Modules, built-in names and other names of the standard library that came after Python 3.10.
NEWER_MODULES = {"tomllib", "annotationlib", "compression", "concurrent.interpreters", "string.templatelib"}
NEWER_BUILTINS = {"ExceptionGroup", "BaseExceptionGroup", "PythonFinalizationError"}
NEWER_NAMES = {
    "StrEnum", "ReprEnum", "UTC", "TaskGroup", "batched",
    "file_digest", "Self", "Never", "LiteralString", "Unpack", "TypeVarTuple", "NotRequired", "Required", "override",
    "TypeAliasType", "assert_never", "assert_type", "reveal_type", "dataclass_transform", "add_note", "sumprod", "cbrt",
    "deprecated", "process_cpu_count",
}  # fmt: skip


def test_the_linter_checks_the_syntax_of_the_oldest_python():
    assert OLDEST == (3, 10)  # NEWER_MODULES and NEWER_NAMES are those of this version
    assert 'target-version = "py{}{}"'.format(*OLDEST) in (ROOT / "ruff.toml").read_text()


def newer_names(path: Path) -> set[str]:
    """The modules and names that a file uses and that are newer. Raises SyntaxError for newer syntax."""
    used = set()
    for node in ast.walk(ast.parse(path.read_text(), feature_version=OLDEST)):
        if isinstance(node, ast.Import):
            used |= {alias.name for alias in node.names} & NEWER_MODULES
        elif isinstance(node, ast.ImportFrom):
            used |= {node.module} & NEWER_MODULES | {alias.name for alias in node.names} & NEWER_NAMES
        elif isinstance(node, ast.Attribute):
            used |= {node.attr} & NEWER_NAMES
        elif isinstance(node, ast.Name):
            used |= {node.id} & NEWER_BUILTINS
    return used


def test_no_file_has_syntax_modules_or_names_that_are_newer():
    files = [path for path in ROOT.rglob("*.py") if not {".venv", "output"} & set(path.relative_to(ROOT).parts)]
    assert len(files) > 200
    assert {str(path): newer for path in files if (newer := newer_names(path))} == {}


def test_newer_syntax_modules_and_names_are_found(tmp_path):
    path = tmp_path / "file.py"
    path.write_text("import tomllib\nfrom enum import StrEnum\nimport hashlib\nhashlib.file_digest(None, 'md5')\n")
    assert newer_names(path) == {"tomllib", "StrEnum", "file_digest"}
    path.write_text("try:\n    pass\nexcept* OSError:\n    pass\n")
    with pytest.raises(SyntaxError):
        newer_names(path)
