"""The rooms of the repository and the order of imports between them (docs/architecture.md)."""

import ast
from pathlib import Path

import pytest
from conftest import ROOT

from config import names

# A room may only import from rooms of a lower level. Rooms of one level do not import from each other.
LEVELS = [
    ["utils"], ["config"], ["data"], ["backbones", "heads"], ["eval"], ["train"], ["deploy", "tools", "demo"],
    ["benchmarks"],
]  # fmt: skip
LEVEL = {room: level for level, rooms in enumerate(LEVELS) for room in rooms}
MODULES = sorted(path for room in LEVEL for path in (ROOT / room).rglob("*.py"))

# Only these rooms import OpenCV; the others use the functions of data/images.py.
OPENCV_ROOMS = {"data", "demo", "benchmarks"}
OPENCV_VERSION = Path("utils/about.py")  # imports it for its version


def imported_packages(path: Path) -> set[str]:
    """The top-level packages that a file imports, anywhere in it, also inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: line {node.lineno} is a relative import"
            names.add(node.module)
    return {name.partition(".")[0] for name in names}


def imported_rooms(path: Path) -> set[str]:
    """The rooms that a file imports from."""
    return imported_packages(path) & LEVEL.keys()


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_from_lower_levels(path):
    room = path.relative_to(ROOT).parts[0]
    wrong = [other for other in imported_rooms(path) if other != room and LEVEL[other] >= LEVEL[room]]
    assert not wrong, f"{path.relative_to(ROOT)} imports from {', '.join(wrong)}"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_looks_up_only_names_of_its_own_or_of_lower_levels(path):
    """The tables of config/names.py name modules; looking one up imports it."""
    room = path.relative_to(ROOT).parts[0]
    tables = [
        node.attr
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "names"
    ]
    for table in (getattr(names, name) for name in tables if name.isupper()):
        if room == "config" or not isinstance(table, dict):
            continue  # the config compares names and looks nothing up
        rooms = {place.partition(".")[0].partition(":")[0] for place in table.values()}
        assert all(other == room or LEVEL[other] < LEVEL[room] for other in rooms), f"{path} looks up {rooms}"


def test_the_config_looks_up_no_name():
    for path in (ROOT / "config").glob("*.py"):
        if path.name != "names.py":
            text = path.read_text()
            assert "resolve_name" not in text and "names.resolve" not in text, f"{path} imports other rooms"


def test_texts_are_read_and_written_in_utf_8():
    """Every call that opens a text file names the encoding, so that no result depends on the locale."""
    wrong = []
    for path in [*MODULES, *(ROOT / "docs").glob("*.py")]:
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(call, ast.Call) and opens_text(call) and "encoding" not in {k.arg for k in call.keywords}:
                wrong.append(f"{path.relative_to(ROOT)}: line {call.lineno}")
    assert not wrong


def opens_text(call: ast.Call) -> bool:
    """Whether a call opens a text file: read_text or write_text of a path, or open() with a mode without "b"."""
    if isinstance(call.func, ast.Attribute):
        return call.func.attr in ("read_text", "write_text")
    modes = [argument.value for argument in call.args[1:2] if isinstance(argument, ast.Constant)]
    return isinstance(call.func, ast.Name) and call.func.id == "open" and "b" not in "".join(modes)


def test_utils_holds_less_than_a_tenth_of_the_code():
    lines = {path: len(path.read_text().splitlines()) for path in MODULES}
    in_utils = sum(count for path, count in lines.items() if path.relative_to(ROOT).parts[0] == "utils")
    assert in_utils < 0.1 * sum(lines.values())


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_data_demo_and_benchmarks_import_opencv(path):
    relative = path.relative_to(ROOT)
    if relative.parts[0] not in OPENCV_ROOMS and relative != OPENCV_VERSION:
        assert "cv2" not in imported_packages(path), f"{relative} imports OpenCV; use data/images.py instead"
