"""The README and the pages in docs/: links, paths, commands and keys exist, and the README's examples work."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import pytest
import torch
from conftest import ROOT, run_script
from runs import metrics
from test_layout import LEVELS

from config import load_config

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
README = PAGES[0].read_text()
SECTIONS = [
    "Results", "Install and quick start", "Train", "Evaluate", "Use in Python", "Map of the repository", "Extend it",
    "Data", "Licence",
]  # fmt: skip
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.DOTALL | re.MULTILINE)
NO_KEYS = ("key", "mode", "weights_only")  # names before an equals sign that are not config keys
SUFFIXES = (".py", ".sh", ".md", ".txt", ".toml", ".pth", ".npz", ".png", ".json")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def blocks(text: str, language: str) -> list[str]:
    """The fenced blocks of a page in a language."""
    return [block for name, block in FENCE.findall(text) if name == language]


def section(title: str) -> str:
    """A section of the README."""
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def code(page: Path) -> list[str]:
    """The texts in single backticks on a page."""
    return re.findall(r"`([^`\n]+)`", prose(page))


@pages
def test_links_and_anchors_exist(page):
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith(("http://", "https://")):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert not broken


@pages
def test_paths_to_files_of_the_repository_exist(page):
    """Paths are texts that start with a folder of the repository, and names of Python files without a folder."""
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} - {"output", "dataset"}
    names = {path.name for folder in folders for path in (ROOT / folder).rglob("*.py")}
    broken = []
    for text in code(page):
        first, slash, _ = text.partition("/")
        if not re.fullmatch(r"[\w./-]+", text):
            continue
        if slash and first in folders and (text.endswith(SUFFIXES) or text.endswith("/")):
            broken += [text] if not (ROOT / text).exists() else []
        elif not slash and text.endswith(".py"):
            broken += [text] if text not in names else []
    assert not broken


def settings(page: Path) -> Iterator[list[str]]:
    """The config keys with values that a page tells readers to set, one list per command or code span."""
    commands = "\n".join(blocks(page.read_text(), "bash")).replace("\\\n", " ").splitlines()
    scripts = [command for command in commands if re.search(r"(train|eval)/\w+\.py|run_AdaDistill", command)]
    for text in [*scripts, *code(page)]:
        words = [word for word in shlex.split(text, comments=True) if re.fullmatch(r"[a-zA-Z_]+=\S*", word)]
        words = [word for word in words if not word.partition("=")[0].isupper()]  # environment variables
        if not any(word.endswith(("...", "=", "=N")) or word.partition("=")[0] in NO_KEYS for word in words):
            yield words


@pages
def test_keys_of_the_config_have_allowed_values(page, monkeypatch):
    monkeypatch.setenv("FACE_DATA", "data")
    for words in settings(page):
        load_config(overrides=["dataset=custom", "num_classes=None", *words])


@pages
def test_scripts_and_presets_of_commands_exist(page):
    for block in blocks(page.read_text(), "bash"):
        for path in re.findall(r"(?<![\w/.])(?:\./)?((?:[a-z_]+/)*\w+\.(?:py|sh))\b", block):
            folder = path.partition("/")[0] if "/" in path else "."
            if folder not in ("output", "path"):
                assert (ROOT / path).is_file(), f"{page.name}: {path}"


@pages
def test_python_blocks_are_python(page):
    for block in blocks(page.read_text(), "python"):
        if not block.startswith("# config/names.py"):
            ast.parse(block)


def test_the_readme_keeps_its_order_and_length():
    assert re.findall(r"^## (.*)$", README, re.MULTILINE) == SECTIONS
    assert len(README.splitlines()) <= 300


def test_the_readme_shows_the_defaults_of_fifteen_keys():
    rows = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", section("Train"), re.MULTILINE)
    cfg = load_config(overrides=["dataset=emoreIresNet"])
    assert len(rows) == 15
    for key, default in rows:
        (value,) = cfg[key] if key == "rec" else [cfg[key]]
        value = value.removeprefix(f"{ROOT}/") if isinstance(value, str) else value
        assert value == ast.literal_eval(default), key


def test_the_example_in_python_embeds_two_faces(tmp_path, monkeypatch):
    from backbones.mobilefacenet import MobileFaceNet
    from demo.make_demo_data import encoded_face

    torch.manual_seed(3)
    network = MobileFaceNet(16, 0.125)
    torch.save(network.state_dict(), tmp_path / "394238backbone.pth")
    (tmp_path / "config.py").write_text("preset = dict(dataset='custom', width=0.125, embedding_size=16)")
    for name, image in (("a.png", 0), ("b.png", 1)):
        encoded = encoded_face((0, 7, image, 0.3))
        pixels = cv2.imdecode(torch.frombuffer(bytearray(encoded), dtype=torch.uint8).numpy(), cv2.IMREAD_COLOR)
        cv2.imwrite(str(tmp_path / name), pixels)
    (example,) = blocks(section("Use in Python"), "python")
    assert len([line for line in example.splitlines() if line]) == 10
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(example.replace("output/AdaDistill", str(tmp_path)), names)  # noqa: S102 (our own README)

    faces = names["faces"]
    assert faces.shape == (2, 112, 112, 3) and faces.dtype == torch.uint8
    assert tuple(faces[0, 40, 40].tolist()) == tuple(cv2.imread("a.png")[40, 40, ::-1].tolist())  # RGB
    x = (faces.permute(0, 3, 1, 2).double() - 127.5) / 127.5
    first, second = (network.eval().double()(x) + network(x.flip(3))).detach()
    expected = (first @ second) / (first.norm() * second.norm())
    assert names["cosine"] == pytest.approx(expected.item(), abs=1e-5)
    assert -1 <= names["cosine"] < 1


def test_the_additions_that_the_readme_shows_train_a_network(small_run, tmp_path):
    """One new file and one line each, in a copy of the repository: a margin, a backbone and a schedule.

    The backbone is trained as a student, then it is the teacher of another student.
    """
    for room in [room for level in LEVELS for room in level if (ROOT / room).is_dir()]:
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    *files, lines = blocks(section("Extend it"), "python")
    for content in files:
        (tmp_path / content.splitlines()[0].removeprefix("# ")).write_text(content)
    names = tmp_path / "config" / "names.py"
    text = names.read_text()
    for entry, table in re.findall(r"^(.*,)  # (\w+)$", lines, re.MULTILINE):
        assert f"\n{table} = {{" in text
        text = text.replace(f"\n{table} = {{", f"\n{table} = {{{entry}")
    names.write_text(text)
    script, output = tmp_path / "train/train_AdaDistill.py", tmp_path / "run"
    new = ["loss=HalfCosFace", "network=tiny", "lr_schedule=linear", "warmup_epoch=0", "max_steps=6"]
    done = run_script(script, *small_run, *new, f"output={output}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "margin 0.175" in (output / "training.log").read_text()  # half of 0.35
    *steps, evaluation = metrics(output)
    peak = 0.1 * 8 / 512  # for 8 images per step; 6 steps are the first of 2 epochs
    assert [line["lr"] for line in steps] == pytest.approx([peak * (1 - step / 12) for step in range(6)])
    assert "verification.pairs.Accuracy-Flip" in evaluation

    teacher = ["teacher=tiny", f"pretrained_teacher_path={output / '6backbone.pth'}", "max_steps=2"]
    done = run_script(script, *small_run, *teacher, f"output={tmp_path / 'student'}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "teacher: tiny from " in (tmp_path / "student" / "training.log").read_text()


def test_the_line_counts_of_the_architecture_are_about_right():
    page = (ROOT / "docs" / "architecture.md").read_text()
    counts = re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", page, re.MULTILINE)
    assert len(counts) >= 20
    for path, stated in counts:
        lines = len((ROOT / path).read_text().splitlines())
        assert abs(lines - int(stated)) <= 10, f"docs/architecture.md: {path} has {lines} lines"
