"""A benchmark is one module and one line: the example of docs/evaluation.md works in a copy of the repository."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, run_script
from evaluation_sets import draw_faces, write_checkpoints
from runs import metrics, train, value

from data.bin_set import write_bin

SMALL = ["width=0.125", "embedding_size=16", "val_targets=[]", "ijb_targets=[]", "tinyface_targets=[]"]


def code_blocks(section: str) -> list[str]:
    """The Python blocks of a section of docs/evaluation.md."""
    text = (ROOT / "docs" / "evaluation.md").read_text()
    return re.findall(r"```python\n(.*?)```", text[text.index(f"## {section}") :], re.DOTALL)


@pytest.fixture(scope="module")
def copy_with_benchmark(tmp_path_factory) -> Path:
    """A copy of the repository's code with the example's module and its line in config/names.py."""
    copy = tmp_path_factory.mktemp("copy")
    for room in ("backbones", "config", "data", "eval", "heads", "train", "utils"):
        shutil.copytree(ROOT / room, copy / room, ignore=shutil.ignore_patterns("__pycache__"))
    module, line = code_blocks("A new benchmark")
    (copy / "eval" / "gap.py").write_text(module)
    names = (copy / "config" / "names.py").read_text()
    last = '    "tinyface": "eval.tinyface:PROTOCOL",\n'
    assert names.count(last) == 1
    (copy / "config" / "names.py").write_text(names.replace(last, f"{last}    {line.splitlines()[-1]}\n"))
    return copy


def test_the_example_of_the_docs_gives_json_csv_tables_and_plots(copy_with_benchmark, tmp_path):
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    write_checkpoints(checkpoints)
    write_bin(tmp_path / "pairs.bin", draw_faces(), [True, False] * 10)
    out, printed = tmp_path / "out", ""
    flags = ["--gap-root", tmp_path, "--gap-targets", "pairs", "--gap-batch-size", 8, "--gap-num-workers", 0, *SMALL]
    full_eval = ["--checkpoint", checkpoints / "5backbone.pth", "--results-json", out / "5.json", "--plots", out]
    for script, *arguments in (
        ["run_full_eval.py", *full_eval, *flags],
        ["run_batch_eval.py", "--checkpoint-dir", checkpoints, "--report-dir", out / "reports", *flags],
        ["compare.py", out / "5.json"],
    ):
        done = run_script(copy_with_benchmark / "eval" / script, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        printed += done.stdout

    scores = json.loads((tmp_path / "out" / "5.json").read_text())["gap"]["pairs"]
    with np.load(tmp_path / "out" / "5.npz") as arrays:
        cosine, is_same = arrays["gap/pairs/cosine"], arrays["gap/pairs/is_same"]
    assert scores == {"gap": pytest.approx(cosine[is_same].mean() - cosine[~is_same].mean())}
    assert re.search(rf"pairs +gap +{scores['gap']:.4f}\n", printed)  # on the screen
    assert len(re.findall(r"\| pairs gap +\|", printed)) == 2  # the table of the summary, and that of compare.py
    with open(tmp_path / "out" / "reports" / "summary.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["checkpoint"] for row in rows] == ["5backbone", "10backbone", "finalbackbone", "best"]
    gaps = [float(row["gap.pairs.gap"]) for row in rows]
    assert gaps[0] == scores["gap"] and gaps[3] == max(gaps[:3])
    csv_text = (tmp_path / "out" / "reports" / "5backbone_metrics.csv").read_text()
    assert csv_text == f"metric,value\ngap.pairs.gap,{scores['gap']}\n"
    assert (tmp_path / "out" / "cosines_pairs.png").is_file()
    assert (tmp_path / "out" / "reports" / "plots" / "gap.png").is_file()
    page = (tmp_path / "out" / "report.html").read_text()
    assert "pairs: cosines of genuine and impostor pairs" in page


def test_the_example_of_the_docs_is_evaluated_during_training(copy_with_benchmark, small_run, tmp_path):
    gap = [f"gap_root={value(small_run, 'val_rec')}", "gap_targets=pairs", "gap_num_workers=0", "eval_every_n_epoch=1"]
    output = tmp_path / "run"
    train(copy_with_benchmark / "train/train_standalone.py", [*small_run, *gap], output, "val_targets=[]")
    evaluations = [line for line in metrics(output) if line["kind"] == "evaluation"]
    assert [line["step"] for line in evaluations] == [6, 12]
    assert all(-2 < line["gap.pairs.gap"] < 2 for line in evaluations)
    assert re.search(r"pairs +gap +-?\d\.\d{4}\n", (output / "training.log").read_text())
