"""tools/study.py: the plan, runs that fail or are interrupted, what is repeated, and a real study."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from evaluation_sets import score
from stand_in_study import ON_DEMO, PLAIN_AND_ARCFACE, STUDY, calls, table, use_stand_ins

from config import load_config
from config.config import config as defaults
from tools.studies import plan, results, runs
from tools.studies.plan import Run, plan_methods, split_presets
from utils.errors import InputError


@pytest.fixture
def stand_ins(monkeypatch):
    use_stand_ins(monkeypatch)


def test_presets_are_separated_by_commas_outside_brackets():
    assert split_presets("a, b geom_margin_w=2,c lr_milestones=[1, 2] m=(1,2),") == [
        "a", "b geom_margin_w=2", "c lr_milestones=[1, 2] m=(1,2)",
    ]  # fmt: skip


def test_a_method_is_a_preset_on_top_of_the_config_with_overrides(tmp_path):
    text = "plain_student,adadistill_geometry_static geom_margin_w=0.5,adadistill_arcface pretrained_teacher_path=x.pth"
    plain, static, other_teacher = plan_methods("config/demo.py", text, tmp_path, ["batch_size=16", "geom_margin_w=9"])
    assert [method.script for method in (plain, static)] == ["train/train_standalone.py", "train/train_AdaDistill.py"]
    assert (plain.cfg.loss, plain.cfg.batch_size, plain.cfg.width) == ("ArcFace", 16, 0.25)
    assert (static.cfg.geom_margin, static.cfg.geom_margin_w, static.cfg.num_epoch) == ("static", 0.5, 3)
    assert plain.embeddings == [] and Path(static.embeddings[0]).parent == tmp_path / "teacher"
    assert other_teacher.embeddings != static.embeddings
    run = Run(static, 3)
    assert run.folder.parent.name == "adadistill_geometry_static_geom_margin_w=0.5"
    again = load_config(static.preset, run.overrides)
    assert again == run.config() and again.seed == 3 and again.output == str(run.folder)
    live = plan_methods("config/demo.py", "adadistill_arcface", tmp_path, ["teacher_embeddings=[]"])
    assert live[0].embeddings == []


def test_a_preset_in_a_file_that_builds_on_the_plain_student_has_no_teacher(tmp_path):
    own = tmp_path / "own.py"
    own.write_text(f"base = {str(ROOT / 'config' / 'plain_student.py')!r}\npreset = dict(m=0.2)\n")
    methods = plan_methods("config/demo.py", f"{own},config/plain_student.py", tmp_path / "study", [])
    assert [method.script for method in methods] == ["train/train_standalone.py"] * 2


def test_the_embeddings_that_a_config_or_preset_names_are_used(tmp_path):
    own = tmp_path / "own.py"
    own.write_text("preset = dict(teacher_embeddings=['/a.npy', '/b.npy'], teacher_projection='pca')\n")
    (method,) = plan_methods("config/demo.py", str(own), tmp_path / "study", [])
    assert method.embeddings == ["/a.npy", "/b.npy"] and "teacher_embeddings" not in " ".join(method.overrides)


def test_a_method_may_need_the_embeddings_that_the_study_computes(tmp_path):
    (method,) = plan_methods("config/demo.py", "adadistill_arcface centers=mean", tmp_path, [])
    assert method.cfg.centers == "mean" and len(method.embeddings) == 1


def test_the_name_of_the_embeddings_does_not_depend_on_where_the_repository_is(monkeypatch, tmp_path):
    def name(root: Path) -> str:
        monkeypatch.setattr(plan, "ROOT", root)
        cfg = load_config(ROOT / "config" / "demo.py", [f"rec={root}/data", f"pretrained_teacher_path={root}/t.pth"])
        return plan._embeddings_name(cfg, root / "study")

    assert name(tmp_path / "one") == name(tmp_path / "two")
    assert plan._embeddings_name(load_config(ROOT / "config" / "demo.py"), tmp_path) != name(tmp_path / "one")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--presets", "plain_studnt"], "plain_studnt: no such preset, the most similar is plain_student"),
        (["--presets", "demo batch=3"], "demo batch=3: batch: no such key, the most similar is 'batch_size'"),
        (["--presets", "demo,demo"], "'demo' has the same config as 'demo'"),
        (["--presets", "demo,demo output=x"], "output is not an override of a study; it is set by --output"),
        (["--presets", "demo,demo m=None"], "'demo m=None' has the same config as 'demo'"),
        (["--presets", "demo val_targets=a,b"], "b: no such preset; the presets are"),
        (["--presets", "demo 'm=1"], "No closing quotation"),
        (["--presets", "small"], "small is a part of demo.py, so it cannot be on top of it; name another --config"),
        (["--presets", "demo", "--metrics", "AUCC"], "there is no metric AUCC; the metrics are AUC,"),
        (["--presets", "demo,adadistill_arcface dtype=bfloat16"], "dtype = 'bfloat16', but 'auto' for demo"),
        (["--presets", "demo", "--jobs", "0"], "--jobs 0: at least 1"),
        (["--presets", "demo", "seed=3"], "seed is not an override of a study; it is set by --seeds"),
        ([], "name the methods with --presets"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(tmp_path, arguments, message):
    done = score(STUDY, *ON_DEMO, "--output", tmp_path, *arguments, code=2)
    assert message in done.stderr and not list(tmp_path.rglob("*.log"))


def test_a_run_that_fails_does_not_stop_the_others_and_only_incomplete_runs_are_repeated(stand_ins, tmp_path):
    command = [STUDY, *ON_DEMO, *PLAIN_AND_ARCFACE, "--seeds", "2", "--output", tmp_path, "pretrained_teacher_path=x"]
    (tmp_path / "fails").touch()
    done = score(*command, code=2)
    # One seed after the other.
    assert calls(tmp_path) == ["plain_student 1", "adadistill_arcface 1", "plain_student 2", "adadistill_arcface 2"]
    assert "1 of 4 runs failed: adadistill_arcface, seed 2" in done.stderr
    assert [(row["preset"], row["seed"], row["status"].partition(" (")[0]) for row in table(tmp_path)] == [
        ("plain_student", "1", "done"), ("plain_student", "2", "done"), ("adadistill_arcface", "1", "done"),
        ("adadistill_arcface", "2", "failed: error: no more paper"),
    ]  # fmt: skip
    page = (tmp_path / "study.md").read_text()
    assert (
        "adadistill_arcface, seed 2: failed: error: no more paper" in page and "- commit: abc\n- device: CPU\n" in page
    )
    assert "| **90.00 (0.00)** |" in page and "tools/study.py --config" in page
    (embeddings,) = (tmp_path / "teacher").glob("*.log")
    assert embeddings.read_text() == "embeddings\n"

    (tmp_path / "fails").unlink()
    score(*command)
    assert calls(tmp_path)[4:] == ["adadistill_arcface 2"] and embeddings.read_text() == "embeddings\n" * 2
    score(*command)
    assert len(calls(tmp_path)) == 5 and {row["status"] for row in table(tmp_path)} == {"done"}
    moved = tmp_path.rename(tmp_path.with_name("moved"))
    score(*[moved if part == tmp_path else part for part in command])
    assert len(calls(moved)) == 5
    again = [moved if part == tmp_path else part for part in command]
    refused = score(*again, "num_epoch=5", code=2).stderr
    assert "seed1: was started with other settings: num_epoch = 3 (now 5); use another --output" in refused
    score(*again, "num_workers=3")
    assert len(calls(moved)) == 5 and {row["status"] for row in table(moved)} == {"done"}
    score(*again, "val_targets=[other]")  # scored again; the training script finds nothing to do
    assert len(calls(moved)) == 9


def test_runs_are_not_started_if_their_teachers_embeddings_failed(stand_ins, monkeypatch, tmp_path):
    monkeypatch.setattr(runs, "cache_command", lambda method: [sys.executable, "-c", "raise SystemExit('no teacher')"])
    score(
        STUDY, *ON_DEMO, *PLAIN_AND_ARCFACE, "--seeds", "1", "--output", tmp_path, "pretrained_teacher_path=x", code=2
    )
    assert calls(tmp_path) == ["plain_student 1"]
    assert table(tmp_path)[1]["status"].startswith("failed: the teacher's embeddings: no teacher (exit code 1")


def test_scripts_that_run_at_once_have_different_gpus(monkeypatch, tmp_path):
    command = [sys.executable, "-c", "import os, time; print(os.environ.get('CUDA_VISIBLE_DEVICES')); time.sleep(1)"]
    for visible, count, expected in (("", 3, {"0", "1"}), ("4,7,8", 3, {"4", "7"}), ("", 1, {""}), ("5", 1, {"5"})):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        monkeypatch.setattr(torch.cuda, "device_count", lambda count=count: count)
        scripts, consoles = runs.Scripts(2), [tmp_path / f"{visible}{count}{job}" for job in range(2)]
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(lambda console, run=scripts.run: run(command, console), consoles))
        assert {console.read_text().strip() for console in consoles} == expected


def test_a_killed_run_that_still_saves_is_waited_for(stand_ins, tmp_path):
    folder = tmp_path / "plain_student" / "seed1"
    folder.mkdir(parents=True)
    hold = (
        f"from utils.files import lock_folder; import time; lock = lock_folder({str(folder)!r}); "
        "print('locked', flush=True); time.sleep(2)"
    )
    with subprocess.Popen([sys.executable, "-c", hold], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        score(STUDY, *ON_DEMO, "--presets", "plain_student", "--seeds", "1", "--output", tmp_path)
        assert holder.poll() is not None


def test_a_folder_that_cannot_be_written_fails_only_the_methods_that_need_it(stand_ins, monkeypatch, tmp_path):
    def run(self, command, console, alone=False):
        if alone:
            raise OSError(30, "Read-only file system", "x")
        return original(self, command, console)

    original = runs.Scripts.run
    monkeypatch.setattr(runs.Scripts, "run", run)
    score(STUDY, *ON_DEMO, *PLAIN_AND_ARCFACE, "--seeds", "1", "--output", tmp_path, code=2)
    assert [row["status"].partition(" (")[0] for row in table(tmp_path)] == [
        "done", "failed: the teacher's embeddings: x: read-only file system; choose a folder that can be written",
    ]  # fmt: skip


def test_a_study_under_nohup_ignores_the_end_of_the_terminal():
    before = {number: signal.getsignal(number) for number in (signal.SIGHUP, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with runs._stopping():
            assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_scripts_end_with_the_study(tmp_path, number):
    script = (
        "import pathlib, signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path('saved').touch(), "
        "sys.exit(143))); pathlib.Path('started').touch(); time.sleep(60)"
    )
    study = (
        "import sys; from pathlib import Path; from tools.studies import runs\n"
        "runs.train_command = lambda run: [sys.executable, '-c', sys.argv[1]]\n"
        "from tools.studies.plan import Run, plan_methods\n"
        "methods = plan_methods('config/demo.py', 'plain_student', Path.cwd() / 'study', [])\n"
        "runs.run_all([Run(methods[0], seed) for seed in (1, 2, 3)], runs.Scripts(2), print)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen([sys.executable, "-c", study, script], cwd=tmp_path, env=environment, text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    _wait_for(tmp_path / "started")
    process.send_signal(number)
    printed, errors = process.communicate(timeout=30)
    _wait_for(tmp_path / "saved")
    assert printed == "" and (number == signal.SIGKILL or "KeyboardInterrupt" in errors)


def _wait_for(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, f"{path} is missing"
        time.sleep(0.02)


def test_a_real_study_pairs_its_runs(small_run, tmp_path):
    command = [STUDY, *PLAIN_AND_ARCFACE, "--seeds", "3,", "--jobs", "2", "--metrics", "AUC", "--output", tmp_path]
    score(*command, *small_run, "num_epoch=1", "lr=1e-30", "weight_decay=0")
    plain, arcface = (tmp_path / name / "seed3" for name in ("plain_student", "adadistill_arcface"))
    assert (plain / "first_batch.png").read_bytes() == (arcface / "first_batch.png").read_bytes()
    weights = [torch.load(folder / "6backbone.pth", weights_only=True) for folder in (plain, arcface)]
    for name, weight in weights[0].items():  # with a learning rate of almost 0, the initial ones
        assert "running" in name or torch.allclose(weight, weights[1][name], rtol=0, atol=1e-20), name
    page = (tmp_path / "study.md").read_text()
    assert "| plain_student" in page and "pairs AUC" in page and "compared with plain_student" in page
    assert (tmp_path / "study.png").read_bytes().startswith(b"\x89PNG") and "](study.png)" in page
    first = (plain / "training.log").stat().st_mtime_ns
    score(*command, *small_run, "num_epoch=1", "lr=1e-30", "weight_decay=0")
    assert (plain / "training.log").stat().st_mtime_ns == first
    refused = score(*command, *small_run, "num_epoch=1", "lr=0.1", "weight_decay=0", code=2).stderr
    assert "was started with other settings: lr = 1e-30 (now 0.1)" in refused


def test_the_report_shows_each_study_in_its_place(tmp_path):
    docs, study = tmp_path / "docs", tmp_path / "order"
    docs.mkdir()
    study.mkdir()
    page = docs / "results.md"
    page.write_text("# Results\n\n<!-- study: order -->\nold\n<!-- end of study -->\n\nText.\n")
    with pytest.raises(InputError, match="no study, because study"):
        results.rebuild([study], docs)
    (study / "study.csv").write_text("preset,seed\n")
    (study / "study.md").write_text("# order\n\n| a |\n\n![Accuracy](study.png)\n")
    (study / "study.png").write_bytes(b"png")
    results.rebuild([study], docs)
    text = page.read_text()
    assert "old" not in text and "| a |\n\n![Accuracy](studies/order/study.png)" in text and text.endswith("\nText.\n")
    assert (docs / "studies" / "order" / "study.png").read_bytes() == b"png"
    results.rebuild([docs / "studies" / "order"], docs)
    assert page.read_text() == text
    other = study.rename(tmp_path / "other")
    with pytest.raises(InputError, match="no place for the study other; add the lines"):
        results.rebuild([other], docs)


def test_results_md_shows_the_present_studies():
    text = (ROOT / "docs" / "results.md").read_text()
    assert results.rebuilt(text) == text


def test_the_default_config_is_the_base_of_a_study_without_config(tmp_path):
    (method,) = plan_methods(str(ROOT / "config" / "config.py"), "adadistill_arcface", tmp_path, [])
    assert method.cfg.loss == "ArcFace" and method.cfg.batch_size == defaults.batch_size
