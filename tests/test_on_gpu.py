"""benchmarks/on_gpu.sh: every part runs on a CPU at tiny sizes, and no part stops the others or leaves processes."""

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from runs import heed_signals

from benchmarks import on_gpu
from benchmarks.gpu import report
from benchmarks.gpu.checks import Limits
from benchmarks.gpu.parts import PARTS, Part
from benchmarks.gpu.report import Report
from benchmarks.gpu.train_lfw import print_epochs
from benchmarks.on_gpu import MARKER, run_command, run_parts

SCRIPT = ROOT / "benchmarks" / "on_gpu.sh"
ENVIRONMENT = {**os.environ, "VENV": sys.prefix}
MACHINE = Part("machine", "", 20, """-c 'print("| fact | value |\\n|---|---|\\n| device | cpu |")'""", "")


@pytest.fixture(scope="session")
def results(tmp_path_factory) -> Path:
    """The folder with the results of one run of all parts."""
    folder = tmp_path_factory.mktemp("on_gpu")
    done = subprocess.run(
        [SCRIPT, folder, "--device", "cpu", "--quick"], capture_output=True, text=True, env=ENVIRONMENT
    )
    logs = "\n".join(path.read_text() for path in folder.glob("*.log"))
    assert done.returncode == 0, done.stdout + done.stderr + logs
    return folder


def entries(folder: Path) -> dict[str, dict]:
    """What results.json says about each part."""
    return {entry["part"]: entry for entry in json.loads((folder / "results.json").read_text())["parts"]}


def test_every_part_runs_on_a_cpu(results):
    parts = entries(results)
    assert list(parts) == [part.name for part in PARTS]
    skipped = {"tests": "needs a GPU"}
    if "FACE_DATA" not in os.environ:
        skipped |= dict.fromkeys(
            ["lfw_teacher", "lfw_alone"], "FACE_DATA is not set: the folder with real faces is needed"
        )
    assert {name: entry["reason"] for name, entry in parts.items() if entry["result"] == "skipped"} == skipped
    for name in parts.keys() - skipped:
        assert parts[name]["result"] == "ok" and parts[name]["seconds"] > 0 and parts[name]["tables"], name


def test_the_report_begins_with_the_machine_and_has_every_part_and_table(results):
    page = (results / "report.md").read_text()
    head, *sections = page.split("\n## ")
    assert "| device | cpu |" in head and f"torch {torch.__version__}" in head and "| missing packages | none |" in head
    for name, entry in entries(results).items():
        assert re.search(rf"^\| {name} \| {entry['result']}", head, re.MULTILINE)
    sections = {section.partition(":")[0]: section for section in sections}
    for name, entry in entries(results).items():
        rows = [row for table in entry["tables"] for row in table]
        if name != "machine" and rows:
            assert entry["command"] in sections[name]
            assert all(f"| {' | '.join(row.values())} |" in sections[name] for row in rows)
    assert sections["epoch"].count("```") == 4 and "aten::" in sections["epoch"]  # the profile of two runs


def test_the_tables_have_numbers(results):
    parts = entries(results)
    (steps,) = parts["step"]["tables"]
    assert [row["step"] for row in steps] == ["student alone", "this repository", "plain"]
    assert all(float(row["ms"]) > 0 for row in steps)
    (epoch,) = parts["epoch"]["tables"]
    names = ["plain, live teacher", "this repository, live teacher", "this repository, cached teacher"]
    assert [row["training"] for row in epoch] == names
    rates, hours = (
        [float(row[name].replace(",", "")) for row in epoch] for name in ("images/s", "hours for 26 epochs of MS1MV2")
    )
    assert hours == pytest.approx([26 * 5_822_653 / 3600 / rate for rate in rates], rel=0.05)
    (checks,) = parts["safety"]["tables"]
    assert len(checks) == 5 and all(float(row["measured"]) <= float(row["at most"]) for row in checks)


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.name)
def test_the_options_of_full_size_are_those_of_the_scripts(part):
    """Only the quick commands run in tests. Those of full size must at least name files and options that exist."""
    words = [word for word in shlex.split(part.full) if word.endswith(".py")]
    texts = [(ROOT / word).read_text() for word in words]
    assert words or "pytest" in part.full
    for option in re.findall(r"--[\w-]+", part.full.partition(words[0] if words else "pytest")[2]):
        assert any(f'"{option}"' in text for text in texts), option


def run(parts: list[Part], folder: Path, seconds: float = 100) -> dict[str, dict]:
    """Run parts on the CPU."""
    run_parts(Report(folder, [MACHINE, *parts]), False, "cpu", time.monotonic() + seconds, dict(os.environ))
    return entries(folder)


def test_a_part_that_fails_does_not_stop_the_next_one(tmp_path):
    failing = Part("bad", "", 20, """-c 'print("| a |\\n|---|\\n| 1 |"); raise SystemExit("that | is wrong")'""", "")
    parts = run([failing, Part("good", "", 20, "-c 1", ""), Part("no", "", 20, "-c 1", "", ("a GPU",))], tmp_path)
    assert [entry["result"] for entry in parts.values()] == ["ok", "failed", "ok", "skipped"]
    assert parts["bad"]["reason"] == "exit code 1: that | is wrong" and parts["bad"]["tables"] == [[{"a": "1"}]]
    page = (tmp_path / "report.md").read_text()
    assert "| bad | failed: exit code 1: that \\| is wrong |" in page and "| no | skipped: needs a GPU |" in page


def test_without_the_wanted_device_no_part_runs(tmp_path):
    run_parts(
        Report(tmp_path, [MACHINE, Part("other", "", 20, "-c 1", "")]),
        False,
        "cuda",
        time.monotonic() + 100,
        dict(os.environ),
    )
    assert entries(tmp_path)["other"]["result"] == "skipped"
    assert entries(tmp_path)["other"]["reason"] == "torch sees no GPU here"


def test_what_is_missing_is_named_even_if_nothing_can_run(tmp_path, monkeypatch):
    monkeypatch.setattr(report, "missing_packages", lambda: ["easydict>=1.13,<2"])
    parts = [MACHINE._replace(full="-c 'import no_such_module'"), Part("other", "", 20, "-c 1", "")]
    run_parts(Report(tmp_path, parts), False, "cuda", time.monotonic() + 100, dict(os.environ))
    assert "| missing packages | easydict>=1.13,<2 |" in (tmp_path / "report.md").read_text()
    assert entries(tmp_path)["machine"]["reason"].startswith("exit code 1: ModuleNotFoundError")
    assert entries(tmp_path)["other"]["reason"] == "the part machine failed"


def test_parts_for_which_no_time_is_left_are_named(tmp_path):
    parts = run([Part("other", "", 20, "-c 1", "")], tmp_path, seconds=0)
    assert {entry["reason"] for entry in parts.values()} == {"no time left"}


def test_the_other_parts_leave_time_for_training_on_real_faces(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "RESERVED", 5.0)
    monkeypatch.setattr(on_gpu, "GRACE", 0.5)
    monkeypatch.setenv("FACE_DATA", str(tmp_path))
    parts = [
        Part("slow", "", 100, "-c 'import time; time.sleep(20)'"),
        Part("lfw", "", 100, "-c 1", "", ("FACE_DATA",)),
    ]
    results = run(parts, tmp_path, seconds=7)
    assert [results[name]["result"] for name in ("slow", "lfw")] == ["timed out", "ok"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_without_a_gpu_the_exit_code_is_1(tmp_path):
    done = subprocess.run([SCRIPT, tmp_path, "--parts", "steps"], capture_output=True, text=True, env=ENVIRONMENT)
    assert done.returncode == 1 and entries(tmp_path)["machine"]["result"] == "ok"
    assert "| steps | skipped: torch sees no GPU here |" in (tmp_path / "report.md").read_text()


# Starts a process in a session of its own, as torchrun starts ranks, then never ends. Both ignore SIGTERM.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if len(sys.argv) == 1:
    print("| started |\\n|---|\\n| 1 |", flush=True)
    subprocess.Popen([sys.executable, __file__, "child"], start_new_session=True)
time.sleep(20)
"""


def processes_of_parts() -> list[str]:
    """The marks of all running processes that a part of this process has started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += re.findall(rf"{MARKER}=({os.getpid()}\.[^\0]*)", path.read_text())
        except OSError:
            continue
    return found


def test_a_part_that_takes_too_long_ends_with_all_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr(on_gpu, "GRACE", 0.2)
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    command = f"'{tmp_path / 'stubborn.py'}'"
    parts = run([Part("slow", "", 2, command, ""), Part("next", "", 20, "-c 1", "")], tmp_path)
    assert parts["slow"]["result"] == "timed out" and parts["slow"]["reason"] == "after 2 s"
    assert parts["slow"]["tables"] == [[{"started": "1"}]] and parts["next"]["result"] == "ok"
    assert processes_of_parts() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_and_leaves_a_complete_report(tmp_path, number):
    command = [SCRIPT, tmp_path, "--device", "cpu", "--quick", "--parts", "steps,head"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT, preexec_fn=heed_signals) as run:
        assert run.stdout.readline().startswith("machine")
        run.send_signal(number)
        assert run.wait(60) == 130
    results = {name: entry["result"] for name, entry in entries(tmp_path).items()}
    assert results == {"machine": "interrupted", "steps": "not run", "head": "not run"}
    assert "| machine | interrupted |" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "OUT"),
        (["out", "--device", "cpu"], "--device cpu needs --quick"),
        (["out", "--parts", "steps,sleep"], "unknown sleep (expected machine, steps"),
    ],
)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    done = subprocess.run([SCRIPT, *arguments], capture_output=True, text=True, cwd=tmp_path, env=ENVIRONMENT)
    assert done.returncode == 2 and message in done.stderr and not list(tmp_path.iterdir())


def test_missing_packages_are_listed_as_in_the_requirements(monkeypatch):
    found = report.importlib.util.find_spec
    monkeypatch.setattr(
        report.importlib.util, "find_spec", lambda name: None if name in ("cv2", "easydict") else found(name)
    )
    assert report.missing_packages() == ["opencv-python-headless>=4.11,<6", "easydict>=1.13,<2"]


def test_a_command_that_prints_nothing_fails_with_its_exit_code(tmp_path):
    result = run_command([sys.executable, "-c", "import sys; sys.exit(3)"], tmp_path / "a.log", 20, dict(os.environ))
    assert result == ("failed", "exit code 3: no output")


def test_a_value_above_its_limit_or_not_a_number_fails_a_check(capsys):
    with pytest.raises(SystemExit, match="above the limit: b; c"), Limits() as limits:
        for name, value in (("a", 0.5), ("b", 1.5), ("c", float("nan"))):
            limits.row(name, value, 1.0)
    assert "| b | 1.5 | 1 |" in capsys.readouterr().out


def test_the_epochs_of_a_run_have_accuracy_loss_and_speed(tmp_path, capsys):
    """The first evaluation is before the first step; a loss that is not finite is null in metrics.jsonl."""
    lines = [{"step": 0, "kind": "evaluation", "verification.a.Accuracy-Flip": 0.5}]
    lines += [
        {"step": step, "kind": "training", "loss": loss, "images_per_second": speed}
        for step, loss, speed in ((1, 40.0, 900.0), (2, 30.0, 4000.0), (3, 35.0, 5000.0))
    ]
    lines += [{"step": 3, "kind": "evaluation", "verification.a.Accuracy-Flip": 0.875}]
    lines += [{"step": 4, "kind": "training", "loss": None, "images_per_second": 10.0}]
    lines += [{"step": 4, "kind": "evaluation", "verification.a.Accuracy-Flip": 0.9}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    print_epochs(tmp_path / "metrics.jsonl")
    rows = capsys.readouterr().out.splitlines()[3:]
    assert rows == ["| 0 | 50.00 |  |  |", "| 3 | 87.50 | 35.00 | 4,000 |", "| 4 | 90.00 | nan | 10 |"]
