"""Scoring a folder of checkpoints as users do: order, skipped reports, ranks, the cache of decoded images, warnings."""

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from evaluation_sets import BATCH, FULL, draw_faces, flags, read_rows, score

from data.bin_set import write_bin
from eval.report import read_csv, read_json


def test_a_folder_is_scored_in_step_order_and_checkpoints_with_a_report_are_skipped(root, checkpoints, tmp_path):
    folder = shutil.copytree(checkpoints, tmp_path / "run")
    arguments = [BATCH, "--checkpoint-dir", folder, *flags(root), "--save-json"]
    done = score(*arguments, "--results-json", tmp_path / "all.json", "--latex")
    lines = done.stdout.splitlines()
    label = lines.index("[1/3] 5backbone.pth: 331 tensors")
    assert lines[label + 1].split() == ["set", "metric", "value"]
    reports = folder / "reports"
    summary = read_rows(reports / "summary.csv")
    assert [row["checkpoint"] for row in summary] == ["5backbone", "10backbone", "finalbackbone", "best"]
    assert [row["step"] for row in summary] == ["5", "10", "", ""]
    for name in ("5backbone", "10backbone", "finalbackbone"):
        alone = tmp_path / f"{name}.json"
        score(FULL, "--checkpoint", folder / f"{name}.pth", *flags(root), "--results-json", alone)
        expected, results = read_json(alone), read_json(reports / f"{name}_metrics.json")
        assert results.metrics == expected.metrics
        from_csv = read_csv(
            reports / f"{name}_metrics.csv", [("verification", "pairs"), ("ijb", "templates"), ("tinyface", "tiny")]
        )
        assert from_csv.metrics == expected.metrics
        for protocol, targets in expected.arrays.items():
            for target, arrays in targets.items():
                for key, array in arrays.items():
                    assert np.array_equal(array, results.arrays[protocol][target][key])
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

    shutil.copy(folder / "5backbone.pth", folder / "10backbone.pth")  # other weights, which look as old as before
    os.utime(folder / "10backbone.pth", (0, 0))
    incomplete = "metric,value\nverification.pairs.Accuracy-Flip,0.5\n"
    (reports / "finalbackbone_metrics.csv").write_text(incomplete)
    (folder / "20backbone.pth").write_text("no checkpoint")
    (reports / "finalbackbone_metrics.json").write_text("{}")
    done = score(*arguments, code=2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert ["skipped" in line for line in lines] == [True, False, False, False]
    assert "FAILED" in lines[2] and "20backbone.pth: not a weights file" in done.stderr
    assert [row["checkpoint"] for row in read_rows(reports / "summary.csv")] == [row["checkpoint"] for row in summary]
    assert "20backbone" in (reports / "summary.md").read_text()
    (folder / "20backbone.pth").unlink()
    done = score(*arguments)
    assert done.stdout.count("skipped") == 3
    done = score(*arguments, "--force", "--report-dir", tmp_path / "elsewhere")
    assert "skipped" not in done.stdout and (tmp_path / "elsewhere" / "report.html").is_file()


def test_a_report_is_used_again_only_for_the_same_settings_and_sets(root, checkpoints, tmp_path):
    """A change of the time of a checkpoint does not matter; each other change counts, also one of a set."""
    sets = shutil.copytree(root, tmp_path / "sets")
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(checkpoints / "5backbone.pth", folder)
    arguments = [BATCH, "--checkpoint-dir", folder, *flags(sets)]

    def skipped(*more: str) -> bool:
        return "skipped" in score(*arguments, *more).stdout

    assert not skipped()
    assert skipped() and skipped("--tinyface-targets", "", "--val-batch-size", "5")
    os.utime(folder / "5backbone.pth")
    assert skipped()
    for change in (["--no-val-flip"], ["dtype=bfloat16"], ["--save-json"], ["--save-embeddings", tmp_path / "saved"]):
        assert not skipped(*change) and skipped(*change)
    assert not skipped("--save-json")  # the file that exists is of an earlier evaluation
    shutil.copy(sets / "pairs.bin", sets / "copy.bin")
    (sets / "copy.bin").replace(sets / "pairs.bin")
    assert not skipped() and skipped()


def test_checkpoints_that_vanish_or_break_do_not_stop_the_evaluation(root, checkpoints, tmp_path, monkeypatch):
    import eval.batch

    folder = shutil.copytree(checkpoints, tmp_path / "run")
    shutil.copy(folder / "5backbone.pth", folder / "7backbone.pth")
    evaluate = eval.batch.evaluate

    def prune_while_scoring(*arguments):
        (folder / "10backbone.pth").unlink(missing_ok=True)
        (folder / "7backbone.pth").write_bytes(b"broken")
        return evaluate(*arguments)

    monkeypatch.setattr(eval.batch, "evaluate", prune_while_scoring)
    done = score(BATCH, "--checkpoint-dir", folder, *flags(root), code=2)
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    assert "not scored: removed" in lines[2] and "FAILED" in lines[1] and "10backbone" not in done.stderr
    rows = read_rows(folder / "reports" / "summary.csv")
    assert [row["checkpoint"] for row in rows] == ["5backbone", "finalbackbone", "best"]
    summary = (folder / "reports" / "summary.md").read_text()
    assert "- not scored: 10backbone.pth: removed" in summary and "- failed: 7backbone.pth" in summary


def test_two_ranks_and_a_small_cache_do_not_change_the_metrics(root, checkpoints, tmp_path):
    arguments = [BATCH, "--checkpoint-dir", checkpoints, *flags(root)]
    score(*arguments, "--report-dir", tmp_path / "0")
    score(*arguments, "--report-dir", tmp_path / "2", ranks=2)
    done = score(*arguments, "--report-dir", tmp_path / "small", "--cache-gb", "0.001")
    assert "pairs: 1.505 MB decoded" in done.stdout + done.stderr
    for name in ("2", "small"):
        assert (tmp_path / name / "summary.csv").read_text() == (tmp_path / "0" / "summary.csv").read_text()


def test_a_set_is_decoded_once_for_all_checkpoints(root, checkpoints, tmp_path, monkeypatch):
    from easydict import EasyDict

    import data.bin_set
    from backbones import build_backbone
    from eval.batch import BatchEvaluation
    from eval.protocols import build_evaluation_sets

    decoded = []
    decode_rgb = data.bin_set.decode_rgb
    monkeypatch.setattr(data.bin_set, "decode_rgb", lambda data, name: decoded.append(name) or decode_rgb(data, name))
    cfg = EasyDict(val_rec=str(root), val_targets=["pairs"], val_batch_size=8, val_num_workers=0, val_flip=True,
                   val_eval_every_n_epoch=1, network="mobilefacenet", embedding_size=16, width=0.125,
                   SE=False, activation="prelu")  # fmt: skip
    sets = build_evaluation_sets(cfg, ["verification"])
    assert [(pairs.protocol, pairs.target) for pairs in sets] == [("verification", "pairs")]

    def load_network(path: Path) -> torch.nn.Module:
        return build_backbone(EasyDict(cfg, init_from=str(path)))

    for cache_gb, times in ((1.0, 1), (0.0, 3)):
        decoded.clear()
        reports = tmp_path / str(cache_gb)
        batch = BatchEvaluation(sets, load_network, torch.float32, {}, reports, False, None, cache_gb)
        for path in sorted(checkpoints.glob("*.pth")):
            batch.score(path, torch.device("cpu"), force=True)
        assert len(decoded) == 40 * times


@pytest.mark.parametrize("size", ["-1", "inf", "nan", "much"])
def test_an_invalid_size_of_the_cache_is_refused(tmp_path, size):
    with pytest.raises(AssertionError, match=rf"--cache-gb: invalid gigabytes value: '{size}'"):
        score(BATCH, "--checkpoint-dir", tmp_path, "--cache-gb", size)


def test_a_folder_without_checkpoints_is_an_error(root, tmp_path):
    done = score(BATCH, "--checkpoint-dir", tmp_path, *flags(root), code=2)
    assert f"{tmp_path}: no file name ends in 'backbone.pth'" in done.stderr
    done = score(BATCH, "--checkpoint-dir", tmp_path / "none", *flags(root), code=2)
    assert "none: no such file or folder; looked for" in done.stderr


@pytest.mark.parametrize("save_json", [[], ["--save-json"]])
def test_the_summary_keeps_warnings_when_reports_are_reused(checkpoints, tmp_path, save_json):
    write_bin(tmp_path / "sorted.bin", draw_faces(), [True] * 10 + [False] * 10)
    folder = tmp_path / "run"
    folder.mkdir()
    shutil.copy(checkpoints / "5backbone.pth", folder)
    arguments = [BATCH, "--checkpoint-dir", folder, *flags(tmp_path, "sorted"), *save_json]
    for reused in (False, True):
        done = score(*arguments)
        assert ("skipped" in done.stdout) is reused
        summary = (folder / "reports" / "summary.md").read_text()
        assert summary.count("- warning: verification.sorted: 10 of 10 folds hold only genuine") == 1
