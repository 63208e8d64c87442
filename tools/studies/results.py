"""Copy studies into docs/studies/ and rebuild the parts of docs/results.md that show them."""

import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from config import ROOT
from tools.studies.records import CSV, SETTINGS
from tools.studies.report import PAGE, PICTURE
from utils.errors import InputError
from utils.files import write_text

DOCS = ROOT / "docs"
STUDIES = "studies"  # the folder in `DOCS`
# In results.md, a study stands between two comments. What is between them is replaced.
_BLOCK = re.compile(r"(<!-- study: ([\w.-]+) -->\n).*?(<!-- end of study -->)", re.DOTALL)


def rebuild(folders: Sequence[Path], docs: Path = DOCS) -> list[Path]:
    """Copy the files of these studies to docs/studies/<name of the folder>, and rebuild docs/results.md from all files
    there. Returns the pages that were written. Raises InputError."""
    page = docs / "results.md"
    text = page.read_text(encoding="utf-8")
    places = [name for _, name, _ in _BLOCK.findall(text)]
    for folder in folders:
        if missing := [name for name in (CSV, PAGE) if not (folder / name).is_file()]:
            raise InputError(f"{folder}: no study, because {missing[0]} is missing; name the --output of a study")
        if folder.name not in places:
            raise InputError(
                f"{page}: no place for the study {folder.name}; add the lines `<!-- study: {folder.name} -->` and "
                "`<!-- end of study -->` where its tables belong"
            )
    for folder in folders:
        target = docs / STUDIES / folder.name
        if folder.resolve() != target.resolve():
            target.mkdir(parents=True, exist_ok=True)
            for name in (CSV, SETTINGS, PAGE, PICTURE):
                if (folder / name).is_file():
                    shutil.copyfile(folder / name, target / name)
                else:
                    (target / name).unlink(missing_ok=True)
    write_text(page, rebuilt(text, docs))
    return [*(docs / STUDIES / folder.name / PAGE for folder in folders), page]


def rebuilt(text: str, docs: Path = DOCS) -> str:
    """The text of results.md with the present tables of all studies in it."""

    def block(match: re.Match) -> str:
        start, name, end = match.groups()
        study = docs / STUDIES / name / PAGE
        if not study.is_file():
            raise InputError(f"{study}: missing; run tools/study.py --report with the folder of the study {name}")
        tables = study.read_text(encoding="utf-8").partition("\n\n")[2]  # without the title
        files = f"Files: [{CSV}]({STUDIES}/{name}/{CSV}), a row per run."
        return f"{start}\n{tables.replace(f']({PICTURE})', f']({STUDIES}/{name}/{PICTURE})')}\n{files}\n\n{end}"

    return _BLOCK.sub(block, text)
