"""The table of speeds: its rows, its accuracy, and what is skipped."""

from importlib.util import find_spec

import numpy as np
import onnx
import pytest
import torch
from conftest import run_script
from golden_networks import settings
from torch import nn
from training_sets import png

from backbones import build_backbone
from data.bin_set import read_bin, write_bin
from deploy import latency, runtimes
from deploy.exported_model import describe, to_onnx
from deploy.sample_images import draw_patterns
from eval.verification import evaluate_pairs
from utils.errors import InputError

SMALL = ["width=0.125", "embedding_size=16"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint, a file of another network, and a verification set."""
    torch.save(build_backbone(settings(width=0.125, embedding_size=16)).state_dict(), tmp_path / "3backbone.pth")
    model = to_onnx(small_network())
    describe(model, {"checkpoint_sha256": ""})
    onnx.save(model, tmp_path / "m.onnx")
    write_bin(tmp_path / "pairs.bin", [png(face) for face in draw_patterns(40).numpy()], [True, False] * 10)
    monkeypatch.setattr(latency, "ROUNDS", {1: 3, 32: 1})
    # Processes that have run OpenVINO crash when they start workers later, as other tests do.
    monkeypatch.setattr(runtimes, "has_openvino", lambda: False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def small_network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 8, stride=8), nn.PReLU(), nn.Flatten(), nn.Linear(784, 8)).eval()


def accuracy(network: nn.Module) -> str:
    images = read_bin("pairs.bin")
    with torch.no_grad():
        pixels = images[np.arange(len(images))].permute(0, 3, 1, 2)
        embeddings = network((pixels.float() - 127.5) / 127.5).numpy()
    return f"{100 * evaluate_pairs(embeddings, images.is_same)['Accuracy-Flip']:.2f}"


def rows(capsys) -> list[list[str]]:
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table[1:]]


def test_the_table_has_each_runtime_and_number_of_threads(folder, monkeypatch, capsys):
    arguments = ["--model", "m.onnx", "--checkpoint", "3backbone.pth", "--set", "pairs.bin", "--threads", "1,2", *SMALL]
    monkeypatch.setattr("sys.argv", ["latency.py", *arguments])
    latency.main()
    found = rows(capsys)
    in_float = [row for row in found if row[1] == "float32"]
    assert [row[0] for row in in_float] == ["torch", "torch", "onnxruntime", "onnxruntime"]
    assert [row[4] for row in in_float[:2]] == ["1", "2"]
    checkpoint = build_backbone(settings(width=0.125, embedding_size=16, init_from="3backbone.pth")).eval()
    assert {row[-1] for row in in_float[:2]} == {accuracy(checkpoint)}
    assert {row[-1] for row in in_float[2:]} == {accuracy(small_network())}
    assert all(float(row[6]) >= float(row[5]) > 0 and float(row[7]) > 0 for row in found)
    assert in_float[0][3] == f"{(folder / '3backbone.pth').stat().st_size / 1e6:.1f}"


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed (requirements/openvino.txt)")
def test_openvino_has_rows_with_the_same_accuracy(folder):
    done = run_script("deploy/latency.py", "--model", "m.onnx", "--set", "pairs.bin", "--threads", "1", cwd=folder)
    found = [line.split(" | ") for line in done.stdout.splitlines() if line.startswith("| OpenVINO | float32")]
    assert len(found) == 1 and found[0][-1] == f"{accuracy(small_network())} |", done.stderr


def test_a_missing_openvino_is_named_and_skipped(folder, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["latency.py", "--model", "m.onnx", "--threads", "1"])
    latency.main()
    printed = capsys.readouterr().out
    assert "OpenVINO: skipped, not installed; run `pip install -r requirements/openvino.txt`" in printed
    assert printed.count("| onnxruntime |") == 1 and "| OpenVINO |" not in printed


@pytest.mark.parametrize("threads", ["0", "one", "1,"])
def test_wrong_numbers_of_threads_are_refused(threads, monkeypatch):
    monkeypatch.setattr("sys.argv", ["latency.py", "--model", "m.onnx", "--threads", threads])
    with pytest.raises(InputError, match="must be numbers from 1"):
        latency.main()


def test_networks_are_timed_in_turns(monkeypatch):
    calls, clock = [], iter(range(100))
    monkeypatch.setattr(runtimes.time, "perf_counter", lambda: next(clock))
    runs = {name: lambda pixels, name=name: calls.append(name) for name in "ab"}
    times = runtimes.time_in_turns(runs, np.zeros(1), 3)
    assert calls == ["a", "b"] * 4  # the first round warms up
    assert times["a"].tolist() == times["b"].tolist() == [1000.0] * 3
