"""Stand-ins for the scripts that a study runs, so that a test of the study takes no training."""

import csv
import json
import sys
from pathlib import Path

import pytest

from tools.studies import runs
from tools.studies.plan import Run

STUDY = "tools/study.py"
ON_DEMO = ["--config", "config/demo.py"]
PLAIN_AND_ARCFACE = ["--presets", "plain_student,adadistill_arcface"]

# The training script fails for seed 2 of the second method, and appends to `calls`.
TRAIN = """
import pathlib, sys
folder, name, seed = pathlib.Path(sys.argv[1]), sys.argv[2], sys.argv[3]
with open(folder.parent.parent / "calls", "a") as calls:
    print(name, seed, file=calls)
if (folder.parent.parent / "fails").exists() and (name, seed) == ("adadistill_arcface", "2"):
    sys.exit("error: no more paper")
folder.mkdir(exist_ok=True)
for part in ("backbone.pth", "header.pth", "state.pth"):
    (folder / f"4{part}").touch()
(folder / "config.py").write_text("# command: x\\n# commit: abc\\n")
"""
RESULTS = {
    "verification": {"demo": {"Accuracy-Flip": 0.9, "Accuracy-Std": 0.01}}, "absent": [], "failed": [], "warnings": [],
    "about": {"commit": "of the evaluation", "device": "CPU"},
}  # fmt: skip
EMPTY_NPZ = b"PK\x05\x06" + bytes(18)
SCORE = f"""
import sys
open(sys.argv[1][:-4] + "npz", "wb").write({EMPTY_NPZ!r})
open(sys.argv[1], "w").write({json.dumps(RESULTS)!r})
"""


def use_stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let tools/study.py run the stand-ins until the end of the test."""

    def train(run: Run) -> list[str]:
        return [sys.executable, "-c", TRAIN, str(run.folder), run.method.name, str(run.seed)]

    monkeypatch.setattr(runs, "train_command", train)
    monkeypatch.setattr(
        runs, "score_command", lambda run, checkpoint: [sys.executable, "-c", SCORE, str(run.results), str(checkpoint)]
    )
    monkeypatch.setattr(
        runs, "cache_command", lambda method: [sys.executable, "-c", "print('embeddings')", *method.overrides]
    )


def calls(folder: Path) -> list[str]:
    path = folder / "calls"
    return path.read_text().splitlines() if path.exists() else []


def table(folder: Path) -> list[dict[str, str]]:
    with open(folder / "study.csv", newline="") as file:
        return list(csv.DictReader(file))
