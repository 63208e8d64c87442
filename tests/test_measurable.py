"""A rate at a FAR for which a set has too few impostor pairs is marked in JSON, CSV, tables, LaTeX, pages and plots."""

import json
from fractions import Fraction

import numpy as np
import pytest
from evaluation_sets import BATCH, COMPARE, FULL, IJB, flags, score, write_checkpoints, write_sets
from scored_sets import scored_pairs, scored_templates

from eval.ijb import FPRS, VARIANTS
from eval.metrics import is_measurable
from eval.protocols import Results
from eval.report import format_results, latex, markdown, methods_table, read_csv, read_json, write_csv, write_json
from eval.report.plots import set_plots, step_plots
from eval.report.tables import list_metrics

TAR = "Norm:True_Det:True_tpr_at_fpr_"
FOOTNOTE = "† not measurable: the set has fewer impostor pairs than 1 / FAR"


def ijb_metrics(**counts: int) -> dict[str, dict]:
    """Metrics of one IJB set, with these numbers of pairs."""
    return {"ijb": {"IJBC_gt_aligned": {f"{TAR}0.0001": 93.0, f"{TAR}1e-05": 89.0, **counts}}}


@pytest.mark.parametrize("power", range(1, 10))
def test_a_rate_is_measurable_if_at_least_one_impostor_pair_is_expected(power):
    for impostors in (0, 1, 10**power - 1, 10**power, 10**power + 1, 28_005):
        assert is_measurable(10**-power, impostors) == (impostors * Fraction(1, 10**power) >= 1)


def test_tables_and_latex_mark_only_the_columns_with_too_few_pairs():
    few, enough = ijb_metrics(genuine_pairs=10, impostor_pairs=28_005), ijb_metrics(impostor_pairs=10**5)
    table = methods_table("", {"few": few, "enough": enough, "unknown": ijb_metrics()}, "method")
    assert table.header == ["method", "IJBC 1e-4", "IJBC 1e-5"]
    assert [row[1:] for row in table.rows] == [["93.00", "89.00†"], ["93.00", "89.00"], ["93.00", "89.00"]]
    assert markdown(table).endswith(f"\n\n{FOOTNOTE}")
    assert r"few & \textbf{93.00} & \textbf{89.00$^\dagger$} \\" in latex(table)
    note = FOOTNOTE.replace("†", r"$^\dagger$")
    assert rf"\multicolumn{{3}}{{l}}{{\footnotesize {note}}} \\" + "\n" + r"\end{tabular}" in latex(table)
    table = methods_table("", {"enough†": enough}, "method")
    assert FOOTNOTE not in markdown(table) and "multicolumn" not in latex(table)


def test_numbers_and_marks_survive_json_and_csv_and_older_results_are_read(tmp_path):
    results = Results(ijb_metrics(genuine_pairs=10, impostor_pairs=28_005), {}, [], [], [])
    write_json(tmp_path / "r.json", results, {"run": "x"})
    write_csv(tmp_path / "r.csv", results)
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["ijb"] == results.metrics["ijb"]
    assert content["not_measurable"] == [f"ijb.IJBC_gt_aligned.{TAR}1e-05"]
    assert "ijb.IJBC_gt_aligned.impostor_pairs,28005\n" in (tmp_path / "r.csv").read_text()
    for read in (read_json(tmp_path / "r.json"), read_csv(tmp_path / "r.csv", [("ijb", "IJBC_gt_aligned")])):
        assert read.metrics == results.metrics and "89.00†" in format_results(read)
        write_csv(tmp_path / "again.csv", read)
        assert (tmp_path / "again.csv").read_text() == (tmp_path / "r.csv").read_text()
    del content["not_measurable"], content["ijb"]["IJBC_gt_aligned"]["impostor_pairs"]
    (tmp_path / "old.json").write_text("\ufeff" + json.dumps(content))  # saved by an editor that adds a mark
    old = read_json(tmp_path / "old.json")
    assert old.metrics == {"ijb": content["ijb"]} and "†" not in format_results(old)


def test_lists_of_metrics_show_intervals_and_say_where_there_are_none():
    metrics = {
        "TAR_at_FAR_0.01": 0.992, "TAR_at_FAR_0.01_low": 0.9867, "TAR_at_FAR_0.01_high": 0.9953,
        "thresh_at_FAR_0.01": 0.25, "thresh_at_FAR_0.01_low": 0.24, "thresh_at_FAR_0.01_high": None,
        "TAR_at_FAR_0.001": 0.97, "TAR_at_FAR_0.001_low": None, "TAR_at_FAR_0.001_high": None,
        "TAR_at_FAR_1e-05": None, "TAR_at_FAR_1e-05_low": None, "TAR_at_FAR_1e-05_high": None,
        "impostor_pairs": 3000,
    }  # fmt: skip
    assert list_metrics("verification", metrics)[:4] == [
        ("TAR_at_FAR_0.01 [%]", "99.20", " (98.67 to 99.53)"),
        ("thresh_at_FAR_0.01", "0.2500", " (0.2400 to -)"),
        ("TAR_at_FAR_0.001 [%]", "97.00", " (no interval)"),
        ("TAR_at_FAR_1e-05 [%]", "-†", ""),
    ]
    assert list_metrics("verification", {"TAR_at_FAR_0.01": 0.5})[0][2] == ""  # results of older versions


def test_every_output_of_the_scripts_marks_what_cannot_be_measured(tmp_path):
    """The IJB set has 2 impostor pairs, the verification set 10: no TAR at 1e-1 or 1e-2 can be measured with them."""
    root, checkpoints = write_sets(tmp_path), write_checkpoints(tmp_path)
    outputs = ["--results-json", tmp_path / "r.json", "--plots", tmp_path / "p"]
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(root), *outputs)
    content = json.loads((tmp_path / "r.json").read_text())
    names = [f"{variant}_{kind}_at_fpr_{fpr}" for variant in VARIANTS for fpr in FPRS for kind in ("tpr", "thresh")]
    templates = content["ijb"]["templates"]
    assert list(templates) == [*names, "genuine_pairs", "impostor_pairs"]
    assert (templates["genuine_pairs"], templates["impostor_pairs"]) == (IJB["label"].sum(), 2)
    pairs = content["verification"]["pairs"]
    assert (pairs["genuine_pairs"], pairs["impostor_pairs"]) == (10, 10)
    assert set(content["not_measurable"]) == {
        *(f"verification.pairs.{name}" for name in pairs if "_at_FAR_" in name),
        *(f"ijb.templates.{name}" for name in names),
    }  # fmt: skip
    assert done.stdout.count(FOOTNOTE) == 1 and f"{pairs['Accuracy-Flip'] * 100:.2f} (" in done.stdout
    tar = f"{templates[f'{TAR}0.0001']:.2f}†"
    page = (tmp_path / "p" / "report.html").read_text()
    assert f"<td>{tar}</td>" in page and f"<p>{FOOTNOTE}</p>" in page
    for name in ("10backbone.pth", "finalbackbone.pth"):
        (checkpoints / name).unlink()
    score(BATCH, "--checkpoint-dir", checkpoints, *flags(root), "--latex", "--report-dir", tmp_path / "reports")
    for name, note in (("summary.md", FOOTNOTE), ("summary.tex", FOOTNOTE.replace("†", r"$^\dagger$"))):
        text = (tmp_path / "reports" / name).read_text()
        assert text.count(note) == 1 and tar.replace("†", note[: note.index(" ")]) in text
    assert "ijb.templates.impostor_pairs" in (tmp_path / "reports" / "summary.csv").read_text()
    (tmp_path / "other.json").write_text((tmp_path / "r.json").read_text())
    compared = score(COMPARE, tmp_path / "r.json", tmp_path / "other.json").stdout
    assert tar in compared and "+0.00†" in compared and compared.count(FOOTNOTE) == 2


def test_plots_show_hollow_marks_and_name_thresholds_that_are_not_measurable():
    metrics, arrays = scored_templates()  # 19,700 impostor pairs
    plots = set_plots("ijb", "IJBC", metrics, arrays)
    axes = plots["roc_IJBC"].figure.axes[0]
    assert axes.patches[0].get_label() == "not measurable: FAR below 1 / number of impostor pairs"
    for variant, hollow in zip(VARIANTS, axes.collections, strict=True):
        expected = [(far, metrics[f"{variant}_tpr_at_fpr_{far}"]) for far in (1e-6, 1e-5)]
        np.testing.assert_array_equal(hollow.get_offsets(), expected)
        assert hollow.get_facecolor().tolist() == [[1, 1, 1, 1]]
    names = [text.get_text().split(":")[0] for text in plots["scores_IJBC"].figure.axes[0].texts]
    assert names == [f"FAR 1e-{power}{' (not measurable)' * (power > 4)}" for power in (6, 5, 4, 3, 2, 1)]
    axes = set_plots("verification", "lfw", {"TAR_at_FAR_0.01": 0.25}, scored_pairs(100))["roc_lfw"].figure.axes[0]
    np.testing.assert_array_equal(axes.collections[0].get_offsets(), [(0.01, 25)])  # 50 impostor pairs


def test_plots_over_steps_name_lines_that_are_not_measurable():
    rows = [(step, ijb_metrics(impostor_pairs=28_005)) for step in (1, 2)]
    labels = [line.get_label() for line in step_plots(rows)["tar"].figure.axes[0].lines]
    assert sorted(labels) == ["IJBC_gt_aligned, FAR 1e-4", "IJBC_gt_aligned, FAR 1e-5, not measurable"]
