"""The summary of RFW's four groups, in results, tables and reports."""

import json
import shutil
import statistics

import pytest
from evaluation_sets import BATCH, COMPARE, FULL, flags, read_rows, score

from eval.protocols import Results, add_summaries
from eval.report import read_json
from eval.rfw import summarise


def accuracies(**values):
    return {name: {"Accuracy-Flip": value, "EER": 0.5} for name, value in values.items()}


def test_mean_deviation_gap_and_ratio_of_the_errors():
    sets = accuracies(African_test=0.9487, Asian_test=0.9557, Caucasian_test=0.9708, Indian_test=0.9563, lfw=0.5)
    metrics, warnings = summarise(sets)
    values = [0.9487, 0.9557, 0.9708, 0.9563]
    assert metrics == pytest.approx({
        "African": 0.9487, "Asian": 0.9557, "Caucasian": 0.9708, "Indian": 0.9563,
        "Accuracy-Mean": statistics.mean(values), "Accuracy-Std": statistics.pstdev(values),
        "Accuracy-Gap": 0.9708 - 0.9487, "SER": (1 - 0.9487) / (1 - 0.9708),
    })  # fmt: skip
    assert warnings == []


@pytest.mark.parametrize("form", ["{}_test", "{}", "rfw_{}", "RFW-{}", "rfw_{}_test"])
def test_groups_are_recognised_by_the_usual_names_and_missing_ones_are_named(form):
    metrics, warnings = summarise(accuracies(**{form.format("african"): 0.75, form.format("Indian"): 1.0}))
    assert metrics == {
        "African": 0.75, "Asian": None, "Caucasian": None, "Indian": 1.0,
        "Accuracy-Mean": 0.875, "Accuracy-Std": 0.125, "Accuracy-Gap": 0.25, "SER": None,
    }  # fmt: skip
    assert len(warnings) == 1 and "without Asian and Caucasian" in warnings[0]


def test_fewer_than_two_groups_have_no_summary():
    assert summarise(accuracies(Asian_test=0.9, lfw=0.9, East_Asian=0.8, Indians=0.7)) is None


def test_a_set_that_is_named_like_the_summary_keeps_its_metrics():
    metrics = accuracies(rfw=0.5, African_test=0.75, Asian_test=0.5)
    results = Results({"verification": metrics}, {}, [], [], [])
    add_summaries(results)
    assert results.metrics["verification"]["rfw"] == {"Accuracy-Flip": 0.5, "EER": 0.5}


def test_the_summary_is_in_every_output_and_the_sets_keep_their_metrics(root, checkpoints, tmp_path):
    for name in ("African_test", "Asian_test", "Indian_test"):
        shutil.copy(root / "pairs.bin", tmp_path / f"{name}.bin")
    sets = [*flags(tmp_path, "African_test,Asian_test,Caucasian_test,Indian_test"), "--ijb-targets", "",
            "--tinyface-targets", ""]  # fmt: skip
    outputs = ["--results-json", tmp_path / "a.json", "--plots", tmp_path / "p"]
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *sets, *outputs)
    for suffix in (".json", ".npz"):
        shutil.copy(tmp_path / f"a{suffix}", tmp_path / f"b{suffix}")
    content = json.loads((tmp_path / "a.json").read_text())
    of_sets = content["verification"]
    accuracy = of_sets["African_test"]["Accuracy-Flip"]
    assert of_sets["African_test"] == of_sets["Indian_test"] and "Accuracy-Mean" not in of_sets["African_test"]
    assert of_sets["rfw"] == {
        "African": accuracy, "Asian": accuracy, "Caucasian": None, "Indian": accuracy, "Accuracy-Mean": accuracy,
        "Accuracy-Std": 0, "Accuracy-Gap": 0, "SER": pytest.approx(1),
    }  # fmt: skip
    (warning,) = content["warnings"]
    assert warning.startswith("verification.rfw: computed without Caucasian")
    assert content["absent"] == [f"verification.Caucasian_test: {tmp_path / 'Caucasian_test.bin'}"]
    page = (tmp_path / "p" / "report.html").read_text()
    for text in ("5backbone: rfw", "mean accuracy [%] (std over groups)", f"<td>{100 * accuracy:.2f} (0.00)</td>"):
        assert text in page
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("rfw ")]
    assert ["rfw", "Caucasian", "[%]", "-"] in lines and len(lines) == 7 and f"WARNING: {warning}" in done.stdout

    compared = score(COMPARE, tmp_path / "a.json", tmp_path / "b.json").stdout
    assert "| rfw mean" in compared and "| rfw gap" in compared
    assert compared.count("unknown") == 0 and "| rfw " not in compared.split("p (McNemar)")[1]
    arguments = [BATCH, "--checkpoint-dir", checkpoints, "--checkpoint-suffix", "5backbone.pth", *sets]
    for form in (["--save-json"], []):  # the second time, the metrics of the sets are read from the report
        done = score(*arguments, "--report-dir", tmp_path / "r", *form)
        assert ("skipped" in done.stdout) == (not form)
        assert read_rows(tmp_path / "r" / "summary.csv")[0]["verification.rfw.Accuracy-Mean"] == str(accuracy)
        assert (tmp_path / "r" / "summary.md").read_text().count(warning) == 1
    assert read_json(tmp_path / "r" / "5backbone_metrics.json").metrics["verification"]["rfw"] == of_sets["rfw"]
