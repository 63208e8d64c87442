"""study.csv and settings.json: a study goes on from them if the files of its runs are gone."""

import json
import shutil

import numpy as np
import pytest
from conftest import ROOT
from evaluation_sets import score
from stand_in_study import ON_DEMO, PLAIN_AND_ARCFACE, RESULTS, STUDY, calls, table, use_stand_ins

from config.rules import EVALUATION
from eval.report import read_json
from tools.studies.plan import Run, plan_methods
from tools.studies.records import TRAINING, changed, read_rows, recorded_results, recorded_settings, write_records


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


def test_the_page_has_no_mcnemar_test_if_the_pairs_of_the_first_method_are_unknown(finished, tmp_path):
    score(*finished, "--seeds", "1")
    page = (tmp_path / "study.md").read_text()
    assert "minus plain_student" in page and "McNemar" not in page
    score(*finished, "--seeds", "2")
    for method, has_test in (("adadistill_arcface", False), ("plain_student", True)):
        pairs = {f"verification/demo/{name}": np.array([True, False]) for name in ("is_same", "decision")}
        np.savez(tmp_path / method / "seed2.npz", **pairs)
        score(*finished, "--seeds", "2")
        assert ("for 1 of 2 networks and these pairs" in (tmp_path / "study.md").read_text()) is has_test


@pytest.mark.parametrize("gone", ["seed1", "seed1.json", "seed1.npz", "seed1/plan.json", "seed1/config.py"])
def test_a_part_of_the_files_may_be_gone(stand_ins, tmp_path, gone):
    command = [STUDY, *ON_DEMO, "--presets", "plain_student", "--output", tmp_path]
    score(*command, "--seeds", "1")
    path = tmp_path / "plain_student" / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    score(*command, "--seeds", "2")
    assert calls(tmp_path) == ["plain_student 1", "plain_student 2"]
    assert [row["verification.demo.Accuracy-Flip"] for row in table(tmp_path)] == ["0.9", "0.9"]


def test_the_picture_has_only_methods_with_the_curves_of_all_runs(stand_ins, tmp_path):
    command = [STUDY, *ON_DEMO, "--presets", "plain_student", "--seeds", "2", "--output", tmp_path]
    score(*command)
    evaluation = {"kind": "evaluation", "step": 4, "verification.demo.Accuracy-Flip": 0.9}
    for seed, has_picture in (("1", False), ("2", True)):
        (tmp_path / "plain_student" / f"seed{seed}" / "metrics.jsonl").write_text(json.dumps(evaluation) + "\n")
        score(*command)
        assert (tmp_path / "study.png").exists() is has_picture
    shutil.rmtree(tmp_path / "plain_student" / "seed1")
    score(*command)
    assert not (tmp_path / "study.png").exists() and "study.png" not in (tmp_path / "study.md").read_text()


def test_the_results_of_other_runs_stay_in_the_table(finished, tmp_path):
    score(STUDY, *ON_DEMO, "--presets", "plain_student  m=0.3", "--seeds", "7,", "--output", tmp_path, "num_epoch=5")
    rows = [(row["preset"], row["seed"]) for row in table(tmp_path)]
    assert rows == [("plain_student m=0.3", "7"), ("plain_student", "1"), ("adadistill_arcface", "1")]
    score(*finished, "--seeds", "1")  # with their own settings
    assert calls(tmp_path) == ["plain_student m=0.3 7"]


def test_other_settings_than_those_in_the_records_are_refused(finished, tmp_path):
    refused = score(*finished, "--seeds", "1", "num_epoch=5", "val_flip=False", code=2).stderr
    assert "study.csv: has the results of plain_student, seed 1 with other settings: num_epoch = 3 (now 5)" in refused
    assert "val_flip = True (now False)" in refused and "the row of this run in study.csv" in refused
    assert not calls(tmp_path)


def test_rows_without_settings_are_kept_but_repeated(finished, tmp_path):
    (tmp_path / "settings.json").unlink()
    score(STUDY, *ON_DEMO, "--presets", "plain_student", "--seeds", "2,", "--output", tmp_path)
    assert calls(tmp_path) == ["plain_student 2"] and len(table(tmp_path)) == 3
    score(*finished, "--seeds", "1")
    assert calls(tmp_path)[1:] == ["plain_student 1", "adadistill_arcface 1"]


@pytest.mark.parametrize(
    ("file", "old", "new", "message"),
    [
        ("study.csv", "preset,", "name,", "study.csv: not the table of a study"),
        ("study.csv", ",0.9,", ",0;9,", "study.csv: the row of plain_student, seed 1 is damaged"),
        ("settings.json", "{", "", "settings.json: not the settings of a study"),
    ],
)
def test_damaged_records_are_named_before_anything_runs(finished, tmp_path, file, old, new, message):
    text = (tmp_path / file).read_text()
    assert old in text
    (tmp_path / file).write_text(text.replace(old, new, 1))
    assert message in score(*finished, "--seeds", "2", code=2).stderr and not calls(tmp_path)


def test_the_metrics_of_a_row_are_those_of_the_results(tmp_path, monkeypatch):
    monkeypatch.setenv("FACE_DATA", str(tmp_path / "faces"))
    targets = ["val_targets=[x,x.1]", "tinyface_targets=[tiny_0.1]"]
    (method,) = plan_methods(str(ROOT / "config" / "lfw.py"), "adadistill_arcface", tmp_path / "study", targets)
    values = {
        "verification": {"x": {"AUC": 0.123456789012345678, "TAR_at_FAR_0.01": None}, "x.1": {"genuine_pairs": 7}},
        "tinyface": {"tiny_0.1": {"rank-1": 55.5}},
    }
    (tmp_path / "r.json").write_text(json.dumps(RESULTS | values))
    results, run = read_json(tmp_path / "r.json"), Run(method, 3)
    write_records(tmp_path / "study", {run: "done"}, {run: results}, {run: {"commit": "abc", "command": "x"}})
    recorded, row = recorded_results(run)
    assert recorded.metrics == values and row["commit"] == "abc" and "command" not in row
    assert read_rows(tmp_path / "study").keys() == {("adadistill_arcface", "3")}
    known = recorded_settings(run)
    assert known["rec"] == ["<FACE_DATA>/lfw"] and known["teacher_embeddings"] == ["<study>/teacher"]
    assert not changed(known, run, [*TRAINING, *EVALUATION]) and known["num_epoch"] == 4
    for name in ("study.csv", "settings.json"):
        text = (tmp_path / "study" / name).read_text()
        assert str(tmp_path) not in text and str(ROOT) not in text
