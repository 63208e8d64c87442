"""Tables that compare methods: the best of a column, escaped text, differences, and McNemar's test."""

import pytest
from evaluation_sets import COMPARE, FULL, flags, score, write_checkpoints, write_sets

from eval.protocols import PROTOCOLS
from eval.report import Table, latex, markdown, methods_table, read_json


def test_methods_are_compared_with_the_first_one(tmp_path):
    root, checkpoints = write_sets(tmp_path), write_checkpoints(tmp_path)
    for name in ("5", "10"):
        score(FULL, "--checkpoint", checkpoints / f"{name}backbone.pth", *flags(root), "--results-json",
              tmp_path / f"{name}.json")  # fmt: skip
    done = score(COMPARE, tmp_path / "5.json", tmp_path / "10.json")
    metrics, pairs = {}, {}
    for name in ("5", "10"):
        results = read_json(tmp_path / f"{name}.json")
        metrics[name], pairs[name] = results.metrics, results.arrays["verification"]["pairs"]
    accuracy, other = (100 * metrics[name]["verification"]["pairs"]["Accuracy-Flip"] for name in ("5", "10"))
    first, differences, chance = (part for part in done.stdout.split("\n\n") if part.startswith("|"))
    assert f"{accuracy:.2f} (" in first and f"{other:.2f} (" in first
    assert f"{other - accuracy:+.2f}" in differences
    right = {name: pairs[name]["decision"] == pairs[name]["is_same"] for name in pairs}
    only = [int((right[a] & ~right[b]).sum()) for a, b in (("5", "10"), ("10", "5"))]
    cells = [cell.strip() for cell in chance.splitlines()[2].split("|")[1:-1]]
    assert cells[:4] == ["10", "pairs", *map(str, only)]
    header = "pairs that only 5 decides correctly | pairs that only this method decides correctly"
    assert header in chance.splitlines()[0]
    (tmp_path / "10.npz").unlink()
    assert ".npz beside the JSON is missing" in score(COMPARE, tmp_path / "5.json", tmp_path / "10.json").stdout
    assert r"\begin{tabular}" in score(COMPARE, tmp_path / "5.json", "--latex").stdout


def test_the_best_of_a_column_is_marked_and_text_is_escaped():
    methods = {
        "a_b": {"verification": {"lfw": {"Accuracy-Flip": 0.5, "Accuracy-Std": 0.01}}},
        "c|d": {"verification": {"lfw": {"Accuracy-Flip": 0.75, "Accuracy-Std": 0.02}}},
        "e": {"tinyface": {"tinyface_aligned_pad_0.1": {"rank-1": 50.0, "rank-5": 60.0}}},
    }
    table = methods_table("", methods, "method")
    assert table.header == ["method", "lfw", "tinyface rank-1", "tinyface rank-5"]
    assert table.rows == [["a_b", "50.00 (1.00)", "-", "-"], ["c|d", "75.00 (2.00)", "-", "-"],
                          ["e", "-", "50.00", "60.00"]]  # fmt: skip
    assert table.best == {(1, 1), (2, 2), (2, 3)}
    assert r"c\|d" in markdown(table) and "**75.00 (2.00)**" in markdown(table)
    assert r"a\_b & 50.00 (1.00)" in latex(table) and r"\textbf{75.00 (2.00)}" in latex(table)
    assert latex(Table("", [r"\~^&%$#_{}"], [], set())).splitlines()[2] == (
        r"\textbackslash{}\textasciitilde{}\textasciicircum{}\&\%\$\#\_\{\} \\"
    )


@pytest.mark.parametrize(
    ("protocol", "metric", "expected"),
    [
        ("verification", "Accuracy-Flip", 3),
        ("verification", "EER", 1),
        ("verification", "XNorm", None),
        ("verification", "Accuracy-Std", None),
        ("ijb", "Norm:True_Det:True_thresh_at_fpr_0.1", None),
        ("ijb", "Norm:True_Det:True_tpr_at_fpr_0.1", 3),
        ("tinyface", "rank-1", 3),
    ],
)
def test_the_best_value_depends_on_the_direction_of_the_metric(protocol, metric, expected):
    display = PROTOCOLS[protocol].display(metric)
    assert display.best([1, None, 3, 2]) == expected
    assert display.best([None]) is None
