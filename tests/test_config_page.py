"""The config as people read it: comments, presets, docs/config.md and the flags of the evaluation scripts."""

import runpy
import tokenize
from pathlib import Path

import pytest
from config_files import PRESETS

from config import BASE, ROOT, load_config
from config.rules import REMOVED, RULES, SECTIONS
from eval import arguments


def read_comments() -> dict[str, dict[str, str]]:
    """Section -> key -> comment, from config.py. A section begins with a line `# --- name ---`."""
    sections: dict[str, dict[str, str]] = {}
    with tokenize.open(BASE) as file:
        for token in tokenize.generate_tokens(file.readline):
            if token.type != tokenize.COMMENT:
                continue
            comment, statement = token.string.removeprefix("# "), token.line[: token.start[1]]
            if comment.startswith("--- "):
                sections[comment.strip("- ")] = current = {}
            elif statement.startswith("config."):
                current[statement.partition(" = ")[0].removeprefix("config.")] = comment
    return sections


def test_the_comments_of_config_py_are_the_meanings_in_the_table_of_rules():
    meanings = {section: {key: rule.meaning for key, rule in rules.items()} for section, rules in SECTIONS.items()}
    comments = read_comments()
    assert comments == meanings
    assert [list(keys) for keys in comments.values()] == [list(keys) for keys in meanings.values()]  # in the same order


def test_config_py_has_every_key_and_no_removed_one():
    keys = list(runpy.run_path(str(BASE))["config"])
    assert keys == list(RULES) and not set(keys) & set(REMOVED)


def test_the_page_of_the_config_is_up_to_date():
    script = runpy.run_path(str(ROOT / "docs" / "write_config_page.py"))
    up_to_date = script["PAGE"].read_text() == script["page"]()
    assert up_to_date, "docs/config.md is out of date; run: python docs/write_config_page.py"
    assert script["preset_files"]() == PRESETS


@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.name)
def test_a_preset_is_short_and_states_only_what_differs(path, monkeypatch, tmp_path):
    monkeypatch.setenv("FACE_DATA", "/faces")
    assert len(path.read_text().splitlines()) <= 8
    variables = runpy.run_path(str(path))
    bases = variables.get("base", [])
    bases = [str(path.parent / name) for name in ([bases] if isinstance(bases, str) else bases)]
    (tmp_path / "bases.py").write_text(f"base = {bases}; preset = {{}}")
    base = load_config(tmp_path / "bases.py")
    cfg = load_config(path)
    assert set(cfg) == set(RULES)
    assert not [key for key in variables["preset"] if cfg[key] == base[key]]


def test_the_presets_of_the_published_tables_exist():
    assert {"adadistill_geometry.py", "adadistill_adaface.py", "adadistill_arcface.py"} <= {p.name for p in PRESETS}


def test_the_flags_of_the_evaluation_scripts_follow_from_the_table(monkeypatch):
    monkeypatch.setitem(arguments.names.PROTOCOLS, "survface", "eval.survface:PROTOCOL")
    parser = arguments.make_parser("A script.")
    args = parser.parse_args(["--survface-targets", "a,b", "--no-survface-flip", "--val-data", "bins", "seed=3"])
    cfg = arguments.read_config(args, output="out")
    assert cfg.survface_targets == ["a", "b"] and not cfg.survface_flip and cfg.ijb_flip and cfg.seed == 3
    assert cfg.val_rec == str(Path.cwd() / "bins") and cfg.output == str(ROOT / "out")
    text = " ".join(parser.format_help().split())
    assert all(f"{RULES[key].meaning} (config key {key})" in text for key in arguments.keys_with_flag() if key in RULES)
