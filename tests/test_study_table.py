"""study.csv: a study goes on from it if the files of its runs are gone."""

import json
import shutil

import pytest
from conftest import ROOT
from evaluation_sets import score
from stand_in_study import ON_DEMO, PLAIN_AND_ARCFACE, RESULTS, STUDY, calls, table, use_stand_ins

from eval.report import read_json
from tools.studies.plan import Run, plan_methods
from tools.studies.records import read_rows, recorded_results, settings, write_rows


@pytest.fixture
def stand_ins(monkeypatch):
    use_stand_ins(monkeypatch)


@pytest.fixture
def finished(stand_ins, tmp_path):
    """The command of a study of two methods with one seed, which has run. Of its files, only study.csv is left."""
    command = [STUDY, *ON_DEMO, *PLAIN_AND_ARCFACE, "--output", tmp_path, "pretrained_teacher_path=x"]
    score(*command, "--seeds", "1")
    for name in ("plain_student", "adadistill_arcface", "teacher"):
        shutil.rmtree(tmp_path / name)
    (tmp_path / "calls").unlink()
    return command


def test_runs_in_the_table_are_not_repeated(finished, tmp_path):
    score(*finished, "--seeds", "2")
    assert calls(tmp_path) == ["plain_student 2", "adadistill_arcface 2"]
    assert [(row["preset"], row["seed"], row["status"], row["commit"]) for row in table(tmp_path)] == [
        (method, seed, "done", "abc") for method in ("plain_student", "adadistill_arcface") for seed in "12"
    ]
    page = (tmp_path / "study.md").read_text()
    assert page.count("| 2    | **90.00 (0.00)** |") == 2 and "| +0.00 (+0.00 to +0.00) |" in page
    score(*finished, "--seeds", "2")
    assert len(calls(tmp_path)) == 2


def test_the_results_of_other_runs_stay_in_the_table(finished, tmp_path):
    score(STUDY, *ON_DEMO, "--presets", "plain_student m=0.3", "--seeds", "7,", "--output", tmp_path)
    rows = [(row["preset"], row["seed"]) for row in table(tmp_path)]
    assert rows == [("plain_student m=0.3", "7"), ("plain_student", "1"), ("adadistill_arcface", "1")]


def test_other_settings_than_those_in_the_table_are_refused(finished, tmp_path):
    refused = score(*finished, "--seeds", "1", "num_epoch=5", "val_flip=False", code=2).stderr
    assert "study.csv: has the results of plain_student, seed 1 with other settings: num_epoch = 3 (now 5)" in refused
    assert "val_flip = True (now False)" in refused and not calls(tmp_path)
    text = (tmp_path / "study.csv").read_text()
    (tmp_path / "study.csv").write_text(text.replace("settings", "words", 1))
    assert "study.csv: lacks columns, such as the settings" in score(*finished, "--seeds", "1", code=2).stderr


def test_the_metrics_of_a_row_are_those_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_DATA", str(tmp_path / "faces"))
    targets = ["val_targets=[x,x.1]", "tinyface_targets=[tiny_0.1]"]
    (method,) = plan_methods(str(ROOT / "config" / "lfw.py"), "plain_student", tmp_path / "study", targets)
    values = {
        "verification": {"x": {"AUC": 0.123456789012345678, "TAR_at_FAR_0.01": None}, "x.1": {"genuine_pairs": 7}},
        "tinyface": {"tiny_0.1": {"rank-1": 55.5}},
    }
    (tmp_path / "r.json").write_text(json.dumps(RESULTS | values))
    results, run = read_json(tmp_path / "r.json"), Run(method, 3)
    write_rows(tmp_path / "study", {run: "done"}, {run: results}, {run: {"commit": "abc", "command": "x"}})
    recorded, row = recorded_results(run)
    assert recorded.metrics == values and row["commit"] == "abc" and "command" not in row
    assert read_rows(tmp_path / "study").keys() == {("plain_student", "3")}
    # The places of data, study and repository are not in the table.
    assert str(tmp_path) not in row["settings"] and str(ROOT) not in row["settings"]
    assert '"rec": ["<FACE_DATA>/lfw"]' in row["settings"] and settings(run)["num_epoch"] == 4
