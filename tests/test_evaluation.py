"""Scoring a checkpoint and a folder of them, as users do it: files, flags, absent and broken sets, skipped reports."""

import csv
import importlib
import io
import json
import os
import shutil
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import run_script
from scipy.stats import binom
from test_template_set import COUNT, datasets, write_set

from data.bin_set import write_bin
from demo.make_demo_data import encoded_face
from eval.compare import mcnemar
from eval.report.results import read_csv, read_json
from eval.report.tables import Table, best, latex, markdown, methods_table
from utils.errors import exit_on_input_error

FULL, BATCH, COMPARE = "eval/run_full_eval.py", "eval/run_batch_eval.py", "eval/compare.py"
IJB = {
    "faceness_scores": np.linspace(0.1, 1, COUNT), "templates": np.arange(COUNT) // 2, "medias": np.arange(COUNT),
    "label": np.array([1, 0, 0, 1]), "p1": np.array([0, 0, 1, 2]), "p2": np.array([1, 4, 5, 3]),
}  # fmt: skip
NAMES = [f"{number // 4}_{number}.png" for number in range(COUNT)]
TINYFACE = {"image_paths": NAMES, "probe_paths": NAMES[::4], "gallery_paths": NAMES[1::4],
            "distractor_paths": NAMES[2::4]}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """A folder with every kind of set: pairs.bin, arrow_pairs (Arrow), templates, tiny."""
    folder = tmp_path_factory.mktemp("sets")
    faces = [encoded_face((0, label, image, 0.3)) for label in range(8) for image in range(5)]
    write_bin(folder / "pairs.bin", faces, [True, False] * 10)
    rows = {"image": [{"bytes": data, "path": None} for data in faces], "index": range(40),
            "is_same": np.repeat([True, False] * 10, 2)}  # fmt: skip
    features = datasets.Features(image=datasets.Image(), index=datasets.Value("int64"), is_same=datasets.Value("bool"))
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(folder / "arrow_pairs"))
    images = faces[::3][:COUNT]
    write_set(folder / "templates", range(COUNT), images, IJB)
    write_set(folder / "tiny", range(COUNT), images, TINYFACE)
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> Path:
    """A folder with checkpoints of steps 5 and 10 and one without a step."""
    from backbones.mobilefacenet import MobileFaceNet

    folder = tmp_path_factory.mktemp("checkpoints")
    for seed, name in enumerate(("10backbone.pth", "5backbone.pth", "finalbackbone.pth")):
        torch.manual_seed(seed)
        torch.save(MobileFaceNet(16, 0.125).state_dict(), folder / name)
    return folder


def flags(root: Path, pairs: str = "pairs") -> list[str]:
    return ["--val-data", str(root), "--val-targets", pairs, "--ijb-root", str(root), "--ijb-targets", "templates",
            "--tinyface-root", str(root), "--tinyface-targets", "tiny", "--val-batch-size", "8", "width=0.125",
            "embedding_size=16", "num_workers=0", "ijb_num_workers=0", "tinyface_num_workers=0"]  # fmt: skip


def score(script: str, *arguments: str | Path, code: int = 0, ranks: int = 0) -> subprocess.CompletedProcess:
    """Run a script: under torchrun, or without ranks in this process, which has imported already what takes seconds."""
    if ranks:
        done = run_script(script, *arguments, ranks=ranks)
    else:
        main = importlib.import_module(script.removesuffix(".py").replace("/", ".")).main
        out, err, ended = io.StringIO(), io.StringIO(), 0
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            try:
                with exit_on_input_error():
                    main()
            except SystemExit as end:
                ended = end.code
        done = subprocess.CompletedProcess(sys.argv, ended, out.getvalue(), err.getvalue())
    assert done.returncode == code, done.stdout + done.stderr
    return done


def test_a_checkpoint_leaves_figures_pairs_embeddings_plots_and_a_page(root, checkpoints, tmp_path):
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(root, "pairs,arrow_pairs,none"),
                 "ijb_targets=[]", "tinyface_targets=[]", "--results-json", tmp_path / "r.json",
                 "--save-embeddings", tmp_path / "e", "--plots", tmp_path / "p")  # fmt: skip
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["absent"] == [f"verification.none: {root / 'none.bin'}"] and content["failed"] == []
    assert "absent: verification.none" in done.stdout
    assert content["verification"]["pairs"] == content["verification"]["arrow_pairs"]
    assert content["ijb"].keys() == {"templates"} and content["tinyface"].keys() == {"tiny"}  # named: scored
    assert len(content["ijb"]["templates"]) == 36

    arrays = read_json(tmp_path / "r.json").arrays
    assert {name: len(array) for name, array in arrays["verification"]["pairs"].items()} == {
        "is_same": 20, "score": 20, "decision": 20, "threshold": 10, "norm": 20,
    }  # fmt: skip
    embeddings = np.load(tmp_path / "e" / "verification.pairs.npy").astype(np.float64)
    unit = embeddings / np.linalg.norm(embeddings, axis=1, keepdims=True)
    pairs = arrays["verification"]["pairs"]
    assert pairs["score"] == pytest.approx((unit[::2] * unit[1::2]).sum(1), abs=1e-9)
    right = pairs["decision"] == pairs["is_same"]
    assert content["verification"]["pairs"]["Accuracy-Flip"] == pytest.approx(right.mean())
    assert content["verification"]["pairs"]["XNorm"] == pytest.approx(pairs["norm"].mean(), rel=1e-6)
    assert arrays["tinyface"]["tiny"]["rank"].shape == arrays["tinyface"]["tiny"]["norm"].shape == (3,)
    assert np.load(tmp_path / "e" / "ijb.templates.npy").shape == (COUNT, 16)

    page = (tmp_path / "p" / "report.html").read_text()
    drawn = sorted(path.name for path in (tmp_path / "p").glob("*.png"))
    assert {"roc_templates.png", "scores_pairs.png", "cmc_tiny.png", "norm_pairs.png"} <= set(drawn)
    assert page.count("<img") >= len(drawn) and "none.bin" in page


def test_a_broken_set_fails_alone(root, checkpoints, tmp_path):
    for name in ("templates", "tiny"):
        shutil.copytree(root / name, tmp_path / name)
    (tmp_path / "templates" / "metadata.pt").write_bytes(b"broken")
    (tmp_path / "pairs.bin").write_bytes((root / "pairs.bin").read_bytes())
    content = {}
    for ranks in (0, 2):
        path = tmp_path / f"{ranks}.json"
        done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path), "--results-json", path,
                     code=1 if ranks else 2, ranks=ranks)  # fmt: skip
        assert "error" in done.stderr and "metadata.pt: broken" in done.stderr
        assert "FAILED: ijb.templates: " in done.stdout
        content[ranks] = json.loads(path.read_text())
    assert content[0]["failed"] == content[2]["failed"] and len(content[0]["failed"]) == 1
    assert "ijb" not in content[0] and content[0]["verification"] == content[2]["verification"]
    assert content[0]["tinyface"] == content[2]["tinyface"]


@pytest.mark.parametrize("wrong", [{"templates": ["a"] * COUNT}, {"faceness_scores": ["a"] * COUNT}, {"label": None}])
def test_metadata_of_another_kind_fail_their_set_alone(root, checkpoints, tmp_path, wrong):
    write_set(tmp_path / "templates", range(COUNT), None, {**IJB, **wrong})
    shutil.copy(root / "pairs.bin", tmp_path)
    arguments = [*flags(tmp_path), "--results-json", tmp_path / "r.json"]
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *arguments, code=2)
    assert "ijb.templates: " in done.stderr and f"{next(iter(wrong))} must be a list of" in done.stderr
    assert json.loads((tmp_path / "r.json").read_text())["verification"].keys() == {"pairs"}


def test_an_image_that_one_rank_alone_finds_broken_fails_the_set_on_all(root, checkpoints, tmp_path):
    faces = [encoded_face((0, label, image, 0.3)) for label in range(8) for image in range(5)]
    write_bin(tmp_path / "torn.bin", [*faces[:12], b"torn", *faces[13:]], [True, False] * 10)  # in the second batch
    shutil.copy(root / "pairs.bin", tmp_path)
    path = tmp_path / "r.json"
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path, "torn,pairs"), "--results-json",
                 path, code=1, ranks=2)  # fmt: skip
    content = json.loads(path.read_text())
    assert "torn.bin: image 12" in content["failed"][0] and "torn.bin: image 12" in done.stderr
    assert content["verification"].keys() == {"pairs"}


def test_nothing_there_is_an_error(root, checkpoints, tmp_path):
    done = score(FULL, "--checkpoint", checkpoints / "5backbone.pth", *flags(tmp_path), code=2)
    assert "none of the evaluation sets was found" in done.stderr


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_a_folder_is_scored_in_step_order_and_what_has_its_report_is_skipped(root, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "run")
    arguments = [BATCH, "--checkpoint-dir", folder, *flags(root), "--save-json"]
    done = score(*arguments, "--results-json", tmp_path / "all.json", "--latex")
    reports = folder / "reports"
    summary = rows(reports / "summary.csv")
    assert [row["checkpoint"] for row in summary] == ["5backbone", "10backbone", "finalbackbone", "best"]
    assert [row["step"] for row in summary] == ["5", "10", "", ""]
    for name in ("5backbone", "10backbone", "finalbackbone"):
        alone = tmp_path / f"{name}.json"
        score(FULL, "--checkpoint", folder / f"{name}.pth", *flags(root), "--results-json", alone)
        one, other = read_json(alone), read_json(reports / f"{name}_metrics.json")
        assert one.figures == other.figures
        from_csv = read_csv(
            reports / f"{name}_metrics.csv", [("verification", "pairs"), ("ijb", "templates"), ("tinyface", "tiny")]
        )
        assert from_csv.figures == one.figures
        for protocol, targets in one.arrays.items():
            for target, arrays in targets.items():
                for key, array in arrays.items():
                    assert np.array_equal(array, other.arrays[protocol][target][key])
    accuracies = [float(row["verification.pairs.Accuracy-Flip"]) for row in summary]
    errors = [float(row["verification.pairs.EER"]) for row in summary]
    assert accuracies[3] == max(accuracies[:3]) and errors[3] == min(errors[:3])
    assert summary[3]["verification.pairs.XNorm"] == ""
    assert "**" in (reports / "summary.md").read_text() and r"\toprule" in done.stdout
    assert (reports / "summary.tex").is_file() and (reports / "plots" / "accuracy.png").is_file()
    assert json.loads((tmp_path / "all.json").read_text())["checkpoints"].keys() == {
        "5backbone",
        "10backbone",
        "finalbackbone",
    }

    os.utime(folder / "10backbone.pth")  # newer than its report
    (reports / "finalbackbone_metrics.csv").write_text(
        "metric,value\nverification.pairs.Accuracy-Flip,0.5\n"
    )  # not all
    (folder / "20backbone.pth").write_text("no checkpoint")
    (reports / "finalbackbone_metrics.json").write_text("{}")
    done = score(*arguments, code=2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert ["skipped" in line for line in lines] == [True, False, False, False]
    assert "FAILED" in lines[2] and "20backbone.pth: not a weights file" in done.stderr
    assert [row["checkpoint"] for row in rows(reports / "summary.csv")] == [row["checkpoint"] for row in summary]
    assert "20backbone" in (reports / "summary.md").read_text()
    (folder / "20backbone.pth").unlink()
    done = score(*arguments)
    assert done.stdout.count("skipped") == 3
    done = score(*arguments, "--force", "--report-dir", tmp_path / "elsewhere")
    assert "skipped" not in done.stdout and (tmp_path / "elsewhere" / "report.html").is_file()


def test_a_folder_is_scored_alike_by_two_ranks_and_without_a_cache(root, checkpoints, tmp_path):
    arguments = [BATCH, "--checkpoint-dir", checkpoints, *flags(root)]
    score(*arguments, "--report-dir", tmp_path / "0")
    score(*arguments, "--report-dir", tmp_path / "2", ranks=2)
    done = score(*arguments, "--report-dir", tmp_path / "small", "--cache-gb", "0.001")
    assert "pairs: 0.0 GB decoded" in done.stdout + done.stderr
    for name in ("2", "small"):
        assert (tmp_path / name / "summary.csv").read_text() == (tmp_path / "0" / "summary.csv").read_text()


def test_a_set_is_decoded_once_for_all_checkpoints(root, checkpoints, tmp_path, monkeypatch):
    from easydict import EasyDict

    import data.bin_set
    from eval.batch import Batch
    from eval.protocols import wanted

    decoded = []
    whole = data.bin_set.decode_rgb
    monkeypatch.setattr(data.bin_set, "decode_rgb", lambda data, name: decoded.append(name) or whole(data, name))
    cfg = EasyDict(val_rec=str(root), val_targets=["pairs"], val_batch_size=8, val_num_workers=0, val_flip=True,
                   dtype="float32", network="mobilefacenet", embedding_size=16, width=0.125)  # fmt: skip
    assert wanted(cfg, ["verification"]) == [("verification", "pairs")]
    for cache_gb, times in ((1.0, 1), (0.0, 3)):
        decoded.clear()
        batch = Batch(cfg, ["verification"], tmp_path / str(cache_gb), False, None, cache_gb)
        for path in sorted(checkpoints.glob("*.pth")):
            batch.score(path, torch.device("cpu"), force=True)
        assert len(decoded) == 40 * times


@pytest.mark.parametrize("size", ["-1", "inf", "nan", "much"])
def test_a_cache_of_no_size_is_refused(tmp_path, size):
    with pytest.raises(AssertionError, match=rf"--cache-gb: invalid gigabytes value: '{size}'"):
        score(BATCH, "--checkpoint-dir", tmp_path, "--cache-gb", size)


def test_an_empty_folder_is_named(root, tmp_path):
    done = score(BATCH, "--checkpoint-dir", tmp_path, *flags(root), code=2)
    assert f"{tmp_path}: no file's name ends in 'backbone.pth'" in done.stderr
    done = score(BATCH, "--checkpoint-dir", tmp_path / "none", *flags(root), code=2)
    assert "none: no such folder of checkpoints" in done.stderr


def test_methods_are_compared_with_the_first(root, checkpoints, tmp_path):
    for name in ("5", "10"):
        score(FULL, "--checkpoint", checkpoints / f"{name}backbone.pth", *flags(root), "--results-json",
              tmp_path / f"{name}.json")  # fmt: skip
    done = score(COMPARE, tmp_path / "5.json", tmp_path / "10.json")
    figures, pairs = {}, {}
    for name in ("5", "10"):
        results = read_json(tmp_path / f"{name}.json")
        figures[name], pairs[name] = results.figures, results.arrays["verification"]["pairs"]
    accuracy, other = (100 * figures[name]["verification"]["pairs"]["Accuracy-Flip"] for name in ("5", "10"))
    first, differences, chance = done.stdout.split("\n\n")
    assert f"{accuracy:.2f} (" in first and f"{other:.2f} (" in first
    assert f"{other - accuracy:+.2f}" in differences
    right = {name: pairs[name]["decision"] == pairs[name]["is_same"] for name in pairs}
    only = [int((right[a] & ~right[b]).sum()) for a, b in (("5", "10"), ("10", "5"))]
    cells = [cell.strip() for cell in chance.splitlines()[2].split("|")[1:-1]]
    assert cells[:4] == ["10", "pairs", *map(str, only)]
    (tmp_path / "10.npz").unlink()
    assert ".npz beside the JSON is missing" in score(COMPARE, tmp_path / "5.json", tmp_path / "10.json").stdout
    assert r"\begin{tabular}" in score(COMPARE, tmp_path / "5.json", "--latex").stdout


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (9, 1), (5, 5), (3, 20), (60, 31)])
def test_mcnemar_is_the_two_sided_sign_test_on_the_pairs_that_differ(only_first, only_second):
    first = np.array([True] * only_first + [False] * only_second + [True, False])
    second = np.array([False] * only_first + [True] * only_second + [True, False])
    total = only_first + only_second
    tails = 2 * sum(binom.pmf(k, total, 0.5) for k in range(min(only_first, only_second) + 1))
    assert mcnemar(first, second) == (only_first, only_second, pytest.approx(min(1, tails)))


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
    ("figure", "expected"),
    [
        ("Accuracy-Flip", 3), ("EER", 1), ("XNorm", None),
        ("Accuracy-Std", None), ("Norm:True_Det:True_thresh_at_fpr_0.1", None),
        ("Norm:True_Det:True_tpr_at_fpr_0.1", 3), ("rank-1", 3),
    ],
)  # fmt: skip
def test_the_best_is_the_largest_but_of_errors_and_of_nothing_that_is_no_merit(figure, expected):
    assert best(figure, [1, None, 3, 2]) == expected
    assert best(figure, [None]) is None
