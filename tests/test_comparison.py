"""Comparing several runs of each method: means, deviations, paired intervals, and McNemar's test over all runs."""

import json
import math

import numpy as np
import pytest
from evaluation_sets import COMPARE, score
from scipy import stats

from eval.comparison import comparison, mean_with_interval
from eval.metrics import mcnemar
from eval.protocols import Results
from eval.report import write_json

ABOUT = {"command": "test"}
PAIRS = 200


def results_of(seed: int, accuracy: float) -> Results:
    """Results of one run on the same 200 pairs; the decisions are wrong for other pairs with each seed."""
    is_same = np.arange(PAIRS) % 2 == 0
    wrong = np.random.default_rng(seed).permutation(PAIRS) < round((1 - accuracy) * PAIRS)
    decided = is_same ^ wrong
    metrics = {"Accuracy-Flip": 1 - wrong.mean(), "Accuracy-Std": 0.01, "AUC": accuracy, "genuine_pairs": 100,
               "impostor_pairs": 100}  # fmt: skip
    arrays = {"is_same": is_same, "decision": decided}
    return Results({"verification": {"lfw": metrics}}, {"verification": {"lfw": arrays}}, [], [], [])


ACCURACIES = {"plain": [0.8, 0.82, 0.81], "other": [0.85, 0.84, 0.89]}


@pytest.fixture
def runs():
    return {
        method: {f"seed{seed}": results_of(10 * number + seed, accuracy) for seed, accuracy in enumerate(values)}
        for number, (method, values) in enumerate(ACCURACIES.items())
    }


def cells(row: str) -> list[str]:
    return [cell.strip(" *") for cell in row.split("|")[1:-1]]


def test_the_interval_of_a_mean_is_that_of_scipy():
    values = np.random.default_rng(0).normal(3, 2, 6)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    mean = mean_with_interval(values)
    assert (mean.low, mean.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert mean.deviation == pytest.approx(math.sqrt(((values - values.mean()) ** 2).sum() / 5), rel=1e-12)
    assert mean_with_interval([1.0]).mean == 1 and math.isnan(mean_with_interval([1.0]).low)


def test_methods_with_several_runs_are_compared_by_paired_differences(runs):
    means, differences, chance = comparison(runs, ["AUC"])
    assert means.header == ["mean over runs [%] (standard deviation)", "runs", "lfw", "lfw AUC"]
    first, other = (100 * np.array(values) for values in ACCURACIES.values())
    assert means.rows[0] == ["plain", "3", *[f"{first.mean():.2f} ({first.std(ddof=1):.2f})"] * 2]
    assert means.rows[1][2] == f"{other.mean():.2f} ({other.std(ddof=1):.2f})"
    assert means.best == {(1, 2), (1, 3)}
    interval = stats.ttest_rel(other, first).confidence_interval(0.95)
    assert differences.rows == [
        ["other", "3", *[f"{(other - first).mean():+.2f} ({interval.low:+.2f} to {interval.high:+.2f})"] * 2]
    ]
    correct = {method: np.concatenate([_correct(run) for run in by_run.values()]) for method, by_run in runs.items()}
    only_first, only_other, p = mcnemar(correct["plain"], correct["other"])
    note = "for these 3 networks and pairs"  # and so no verdict
    assert chance.rows == [["other", "lfw", str(only_first), str(only_other), f"{p:.2g}", note]]
    assert only_first + only_other > PAIRS / 4  # not of one run only
    runs["plain"]["seed2"].arrays.clear()
    (row,) = comparison(runs)[2].rows
    assert row[2] != str(only_first) and row[5] == "for 2 of 3 networks and these pairs; the others are unknown"
    for run in runs["other"].values():
        run.arrays.clear()
    (row,) = comparison(runs)[2].rows
    assert row[2:] == ["-", "-", "-", "unknown: the .npz beside the JSON is missing"]


def _correct(results: Results) -> np.ndarray:
    arrays = results.arrays["verification"]["lfw"]
    return arrays["decision"] == arrays["is_same"]


def test_only_runs_with_the_same_seed_are_paired(runs):
    del runs["other"]["seed1"]
    means, differences, _ = comparison(runs)
    assert [row[1] for row in means.rows] == ["3", "2"]
    pairs = [100 * (ACCURACIES["other"][seed] - ACCURACIES["plain"][seed]) for seed in (0, 2)]
    assert differences.rows[0][1] == "2" and differences.rows[0][2].startswith(f"{np.mean(pairs):+.2f} (")
    runs["other"] = {"seed7": runs["other"]["seed0"]}
    for plain in (runs["plain"], {"seed1": runs["plain"]["seed1"]}):
        _, differences, chance = comparison({"third": runs["plain"], **runs, "plain": plain}, first="plain")
        assert differences.rows[1] == ["other", "0", "-"] and chance.rows[1][-1] == "unknown: no paired runs"


def test_without_runs_of_the_first_method_there_are_no_differences(runs):
    assert len(comparison(runs, first="absent")) == 1 and len(comparison(runs, first="other")) == 3


def test_differences_have_the_digits_of_the_metric(runs):
    for results, area in zip(runs["other"].values(), (0.0010, 0.0011, 0.0012), strict=True):
        results.metrics["verification"]["lfw"]["EDC_area_at_FAR_0.01"] = area
    for results in runs["plain"].values():
        results.metrics["verification"]["lfw"]["EDC_area_at_FAR_0.01"] = 0.001
    differences = comparison(runs, ["EDC_area_at_FAR_0.01"])[1]
    assert differences.rows[0][3].startswith("+0.0100 (")


def test_compare_py_takes_folders_of_runs(runs, tmp_path):
    for method, by_run in runs.items():
        for run, results in by_run.items():
            write_json(tmp_path / method / f"{run}.json", results, ABOUT)
    write_json(tmp_path / "teacher.json", results_of(5, 0.95), ABOUT)
    paths = [tmp_path / "plain", tmp_path / "other", tmp_path / "teacher.json"]
    printed = score(COMPARE, *paths, "--metrics", "AUC").stdout
    means, differences, chance = (part.splitlines() for part in printed.strip().split("\n\n"))
    expected = comparison({**runs, "teacher": {"": results_of(5, 0.95)}}, ["AUC"])
    for lines, table in zip((means, differences, chance), expected, strict=True):
        assert [cells(line) for line in (lines[0], *lines[2:])] == [table.header, *table.rows]
    assert cells(means[4]) == ["teacher", "1", "95.00", "95.00"] and cells(differences[3])[1] == "0"
    assert "there is no metric AUCC; the metrics are AUC," in score(COMPARE, *paths, "--metrics", "AUCC", code=2).stderr
    (tmp_path / "empty").mkdir()
    assert "empty: has no JSON files of results" in score(COMPARE, paths[0], tmp_path / "empty", code=2).stderr
    (tmp_path / "plain" / "seed0.json").write_text(json.dumps({}))
    assert "seed0.json: holds no results" in score(COMPARE, *paths, code=2).stderr
