"""Int8: changes of the graph keep embeddings, int8 stays close to float32, and what does not is refused."""

import json
import os
import subprocess
import sys
from functools import cache
from importlib.util import find_spec

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from conftest import ROOT
from onnx import helper, numpy_helper
from runs import refused
from torch import nn
from training_sets import png, write_cvlface_set

from data.bin_set import write_bin
from deploy import quantize, runtimes
from deploy.activations import equalise_channels, links, split_prelu
from deploy.exported_model import copy_of, describe, facts_of, to_onnx
from deploy.int8 import calibrate, largest_values, layers, rank_layers
from deploy.int8 import quantize as to_int8
from deploy.sample_images import draw_patterns

FACES = draw_patterns(40).numpy()


@pytest.fixture(autouse=True)
def without_openvino(monkeypatch) -> None:
    """Processes that have run OpenVINO crash when they start workers later, as other tests do."""
    monkeypatch.setattr(runtimes, "has_openvino", lambda: False)


PIXELS = np.ascontiguousarray(FACES.transpose(0, 3, 1, 2), dtype=np.float32)
SLOPES = torch.tensor([-0.5, 0.0, 0.25, 0.9, 1.0, 1.5, 2.4, 0.3])


def prelu() -> nn.Module:
    layer = nn.PReLU(8)
    layer.weight.data.copy_(SLOPES)
    return layer


def make_network(activation=prelu) -> nn.Module:
    """Four layers like those of MobileFaceNet. Ranges of channels differ by a factor of 100."""
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), activation(), nn.Conv2d(8, 8, 3, stride=2, groups=8), activation(),
        nn.Conv2d(8, 8, 1, bias=False), activation(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 16),
    )  # fmt: skip
    scales = torch.logspace(-1, 1, 8)
    network[0].weight.data *= scales.reshape(-1, 1, 1, 1)
    network[2].weight.data /= scales.reshape(-1, 1, 1, 1)
    network[2].weight.data *= scales.flip(0).reshape(-1, 1, 1, 1)
    network[4].weight.data /= scales.flip(0).reshape(1, -1, 1, 1)
    return network.eval()


@cache
def _exported() -> onnx.ModelProto:
    model = to_onnx(make_network())
    describe(model, {"checkpoint_sha256": "0" * 64, "checkpoint": "3backbone.pth"})
    return model


def exported(activation: str = "PRelu") -> onnx.ModelProto:
    """The file of `make_network`, with another activation in the place of PReLU."""
    model = copy_of(_exported())
    for node in model.graph.node:
        if node.op_type == "PRelu" and activation != "PRelu":
            node.op_type = activation
            del node.input[1:]
            node.attribute.extend([helper.make_attribute("alpha", 0.25)] if activation == "LeakyRelu" else [])
    return model


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"input": PIXELS})[0].astype(np.float64)


def in_torch(network: nn.Module) -> np.ndarray:
    with torch.no_grad():
        return network.double()((torch.from_numpy(PIXELS).double() - 127.5) / 127.5).numpy()


def mean_cosine(one: np.ndarray, other: np.ndarray) -> float:
    return float(((one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)).mean())


@pytest.fixture
def folder(tmp_path):
    """A model, a training set and a verification set."""
    onnx.save(exported(), tmp_path / "m.onnx")
    write_cvlface_set(tmp_path / "train", [0, 0, 1, 1], stated=2)
    write_bin(tmp_path / "pairs.bin", [png(face) for face in FACES], [True, False] * 10)
    return tmp_path


def run_script(folder, monkeypatch, *more: str) -> None:
    arguments = [
        "--model", "m.onnx", "--output", "m.int8.onnx", "--set", "pairs.bin", "rec=train", "dataset=custom",
        "num_classes=None", "num_image=None", *more,
    ]  # fmt: skip
    monkeypatch.chdir(folder)
    monkeypatch.setattr("sys.argv", ["quantize.py", *arguments])
    monkeypatch.setattr(quantize, "ROUNDS", {1: 2, 32: 1})
    quantize.main()


def test_prelu_in_parts_gives_the_same_embeddings():
    model = exported()
    assert split_prelu(model) == 1  # the last one has slopes above 1 and is not before a convolution
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("PRelu") == 1 and kinds.count("Add") == 2
    expected = in_torch(make_network())
    assert np.allclose(run(model), expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize(
    ("activation", "layer"),
    [("PRelu", prelu), ("Relu", nn.ReLU), ("LeakyRelu", lambda: nn.LeakyReLU(0.25))],
)
@pytest.mark.parametrize("in_parts", [False, True])
def test_equal_channels_have_similar_ranges_and_the_same_embeddings(activation, layer, in_parts):
    model = exported(activation)
    if in_parts:
        split_prelu(model)
    assert len(links(model)) == 2
    equalise_channels(model, largest_values(model, FACES))
    first, second = (largest_values(model, FACES)[link.before] for link in links(model))
    assert np.allclose(first, first[0], rtol=1e-3)  # before a depthwise convolution
    weights = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    reading = np.abs(weights[links(model)[1].next_conv.input[1]]).max((0, 2, 3))
    assert np.allclose(second / reading, (second / reading)[0], rtol=1e-3)  # before another one
    expected = in_torch(make_network(layer))
    assert np.allclose(run(model), expected, rtol=1e-4, atol=1e-5 * abs(expected).max())


def test_equal_channels_bring_int8_closer_to_float32_and_layers_in_float_closer_still():
    model = exported()
    split_prelu(model)
    expected, equal = in_torch(make_network()), copy_of(model)
    equalise_channels(equal, largest_values(equal, FACES))
    ranges = calibrate(model, FACES, "min-max")
    found = [mean_cosine(run(to_int8(model, ranges)), expected)]
    found.append(mean_cosine(run(to_int8(equal, calibrate(equal, FACES, "min-max"))), expected))
    assert found[0] < found[1] and found[1] > 0.99
    ranked = rank_layers(model, ranges, FACES)
    assert sorted(name for name, _ in ranked) == sorted(layers(model)) and len(ranked) == 4
    best, cosine = ranked[0]
    kept = to_int8(model, ranges, layers(model)[best])
    assert cosine == pytest.approx(mean_cosine(run(kept), expected), abs=1e-5) and cosine > found[0]
    everything = [node for nodes in layers(model).values() for node in nodes]
    assert mean_cosine(run(to_int8(model, ranges, everything)), expected) == pytest.approx(1, abs=1e-3)


def test_the_script_writes_int8_with_the_facts_of_the_export(folder, monkeypatch, capsys):
    run_script(folder, monkeypatch)
    model = onnx.load(folder / "m.int8.onnx")
    facts = facts_of(model)
    assert facts["checkpoint"] == "3backbone.pth" and facts["checkpoint_sha256"] == "0" * 64
    stated = json.loads(facts["quantization"])
    expected = in_torch(make_network())
    assert stated["cosine_to_float32"]["mean"] == pytest.approx(mean_cosine(run(model), expected), abs=1e-6)
    assert stated["calibrated_on"] == "4 training images" and stated["set"] == "pairs.bin"
    assert {"QuantizeLinear", "DequantizeLinear"} <= {node.op_type for node in model.graph.node}
    assert [node.name for node in model.graph.node[:2]] == ["Sub_pixels", "Mul_pixels"]  # for InsightFace
    printed = capsys.readouterr()
    for name in ("float32, as exported", "float32, PReLU in parts", "int8, min-max", "int8, equalised, min-max"):
        assert f"| {name} |" in printed.out
    assert "1 PReLUs stay in float" in printed.err
    with pytest.raises(quantize.InputError, match="is in int8"):
        run_script(folder, monkeypatch, "--model", "m.int8.onnx")


def test_layers_stay_in_float_or_no_file_is_written_if_limits_are_not_kept(folder, monkeypatch, capsys):
    monkeypatch.setattr(quantize, "MEAN_COSINE", 2.0)
    with pytest.raises(quantize.InputError, match="no file was written"):
        run_script(folder, monkeypatch)
    printed = capsys.readouterr().out
    assert printed.count(" in float: cosine") == 4  # each layer is reported
    assert "1 layers in float" in printed and "2 layers in float" in printed
    assert sorted(path.name for path in folder.iterdir()) == ["m.onnx", "pairs.bin", "train"]

    accepts = quantize.Comparison.accepts
    monkeypatch.setattr(quantize, "MEAN_COSINE", 0.98)
    monkeypatch.setattr(quantize.Comparison, "accepts", lambda self, one: "layers" in one.name and accepts(self, one))
    run_script(folder, monkeypatch)
    assert "1 layers in float" in facts_of(onnx.load(folder / "m.int8.onnx"))["quantization"]


IN_OPENVINO = """
import sys
from pathlib import Path
import numpy as np
from deploy.runtimes import in_openvino
np.save("found.npy", in_openvino(Path("m.int8.onnx").read_bytes(), 1)(np.load("pixels.npy")))
"""


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed (requirements/openvino.txt)")
@pytest.mark.parametrize("runtime", quantize.RUNTIMES)
def test_openvino_gives_the_embeddings_of_onnxruntime(runtime, folder, monkeypatch):
    run_script(folder, monkeypatch, "--runtime", runtime)
    np.save(folder / "pixels.npy", PIXELS)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", IN_OPENVINO], cwd=folder, env=environment, check=True)
    assert mean_cosine(np.load(folder / "found.npy"), run(onnx.load(folder / "m.int8.onnx"))) > 0.999


def test_for_openvino_prelu_stays_and_nothing_is_quantised_before_it(folder, monkeypatch):
    run_script(folder, monkeypatch, "--runtime", "openvino")
    model = onnx.load(folder / "m.int8.onnx")
    producers = {name: node.op_type for node in model.graph.node for name in node.output}
    read = [producers[node.input[0]] for node in model.graph.node if node.op_type == "PRelu"]
    assert read == ["Conv"] * 3 and json.loads(facts_of(model)["quantization"])["runtime"] == "openvino"


def test_other_files_and_missing_sets_are_refused(folder, monkeypatch):
    (folder / "text.onnx").write_bytes(b"\xff no model")
    bare, half = exported(), exported()
    del bare.metadata_props[:]
    half.graph.initializer.append(numpy_helper.from_array(np.zeros(1, np.float16), "half"))
    onnx.save(bare, folder / "bare.onnx")
    onnx.save(half, folder / "half.onnx")
    for changes, words in (
        (["--model", "text.onnx"], "is no ONNX file"),
        (["--model", "bare.onnx"], "is no file of deploy/export_onnx.py"),
        (["--model", "half.onnx"], "is in float16"),
        (["rec=nowhere"], "no training set to calibrate on.*rec=FOLDER"),
        (["--output", "m.xml"], "must end in .onnx"),
        (["--images", "0"], "at least 1"),
    ):
        with pytest.raises(quantize.InputError, match=words):
            run_script(folder, monkeypatch, *changes)
    assert not (folder / "m.int8.onnx").exists()


def test_a_run_without_a_verification_set_is_refused(folder):
    """As a command, whose modules must not hide those of onnxruntime."""
    arguments = ["--model", str(folder / "m.onnx"), "--output", str(folder / "a.onnx"), f"val_rec={folder}"]
    refused("deploy/quantize.py", *arguments, words="no verification set to compare on; name one with --set")
