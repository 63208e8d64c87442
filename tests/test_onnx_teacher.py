"""Teachers in ONNX files: what they take as input, which files are refused, and training with their embeddings."""

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from runs import SCRIPTS, metrics, refused, train
from teacher_files import plain_settings
from training_sets import write_lfw

from backbones import build_backbone, build_teacher, onnx_teacher
from utils.weights import WeightsError

MEANS = ("GlobalAveragePool", "Flatten")  # the embedding of an image: the mean of each channel of the input
PIXELS = np.random.default_rng(0).integers(0, 256, (6, 3, 112, 112))
INPUT = torch.from_numpy((PIXELS.astype(np.float32) - 127.5) / 127.5)


def write_model(path: Path, ops=MEANS, names=(), shape=("N", 3, 112, 112), output=("N", 3), outputs=1, kind=1) -> Path:
    """Write a chain of operators without weights. names: of the first nodes; kind: of the input's numbers."""
    nodes = []
    for i, op in enumerate(ops):
        name = names[i] if i < len(names) else f"{op}_{i}"
        nodes.append(helper.make_node(op, [f"t{i}"], [f"t{i + 1}"], name))
    results = [
        helper.make_tensor_value_info(f"t{len(ops) - i}", kind, output if i == 0 else None) for i in range(outputs)
    ]
    entry = helper.make_tensor_value_info("t0", kind, shape)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(
        helper.make_model(helper.make_graph(nodes, "g", [entry], results), opset_imports=opset, ir_version=8), path
    )
    return path


def settings(path: Path, **changes):
    return plain_settings(path, **{"teacher": "onnx", "embedding_size": 3, "teacher_embeddings": "t.npy", **changes})


@pytest.mark.parametrize(
    ("names", "changes", "mean", "std"),
    [
        ((), {}, 127.5, 127.5),
        (("Conv_0", "PRelu_1"), {}, 127.5, 127.5),
        (("Sub_0", "Mul_1"), {}, 0, 1),
        (("Conv_0", "_mulscalar0", "_minusscalar0"), {}, 0, 1),
        (("Sub_0", "Conv_1"), {}, 127.5, 127.5),
        (("Sub_0", *"abcdefg", "Mul_8"), {}, 127.5, 127.5),  # only the first eight nodes count
        (("Sub_0", "Mul_1"), {"onnx_mean": 127.5, "onnx_std": 128}, 127.5, 128),
        ((), {"onnx_std": 1}, 127.5, 1),
    ],
)
def test_pixels_are_scaled_by_the_rule_of_insightface(tmp_path, names, changes, mean, std):
    ops = ["Identity"] * max(0, len(names) - 2) + list(MEANS)
    teacher = build_teacher(settings(write_model(tmp_path / "m.onnx", ops, names), **changes))
    expected = ((PIXELS.astype(np.float64) - mean) / std).mean((2, 3))
    assert np.allclose(teacher(INPUT), expected, rtol=1e-5, atol=1e-6)
    assert ("raw pixels" if std == 1 and mean == 0 else f"(pixel - 127.5) / {std}") in teacher.loaded
    assert not teacher.training


@pytest.mark.parametrize("batch", [1, 4, 6])
def test_a_file_with_a_fixed_number_of_images_embeds_any_number(tmp_path, batch):
    path = write_model(tmp_path / "m.onnx", shape=(batch, 3, 112, 112), output=(batch, 3))
    embeddings = build_teacher(settings(path, onnx_colours="BGR"))(INPUT)
    assert np.allclose(embeddings, (PIXELS[:, ::-1] / 127.5 - 1).mean((2, 3)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("model", "changes", "words"),
    [
        ({"outputs": 2}, {}, "one input and one output.*t0 tensor\\(float\\) \\[N, 3, 112, 112\\] -> t2.*, t1 "),
        ({"shape": ("N", 3, 160, 160)}, {}, r"takes float images \[N, 3, 112, 112\].*\[N, 3, 160, 160\] -> t2"),
        ({"shape": ("N", 112, 112, 3), "output": ("N", 112)}, {}, r"takes float images.*\[N, 112, 112, 3\]"),
        ({"kind": TensorProto.INT32, "ops": ["Flatten"], "output": None}, {}, r"takes float images.*tensor\(int32\)"),
        ({"ops": ["GlobalAveragePool"], "output": ("N", 3, 1, 1)}, {}, r"gives embeddings .*-> t1 .*\[N, 3, 1, 1\]"),
        ({"ops": ["GlobalAveragePool"], "output": None}, {}, r"gives \[2, 3, 1, 1\] for two|gives embeddings"),
        ({}, {"embedding_size": 512}, r"gives \[2, 3\] for two images \(expected \[2, 512\]\)"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_teacher_is_refused_with_its_signature(tmp_path, model, changes, words):
    path = write_model(tmp_path / "m.onnx", **model)
    with pytest.raises(WeightsError, match=f"m.onnx: .*{words}"):
        build_teacher(settings(path, **changes))


def test_a_file_of_another_kind_is_refused(tmp_path):
    good, path = write_model(tmp_path / "good.onnx").read_bytes(), tmp_path / "m.onnx"
    for content, words in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1\n", "a Git LFS pointer"),
        (b"", "an empty file"),
        (good[: len(good) // 2], "not a complete ONNX model|cannot run it"),
    ]:
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=f"m.onnx: .*({words})"):
            build_teacher(settings(path))


@pytest.mark.parametrize("place", ["initializer", "Constant"])
def test_weights_in_other_files_are_refused_because_the_checksum_would_miss_them(place, tmp_path):
    model = onnx.load(write_model(tmp_path / "m.onnx"))
    tensor = numpy_helper.from_array(np.ones(1000, np.float32), "w")
    if place == "initializer":
        model.graph.initializer.append(tensor)
    else:
        model.graph.node.append(helper.make_node("Constant", [], ["w"], value=tensor))
    elsewhere = dict(save_as_external_data=True, location="w.bin", size_threshold=0, convert_attribute=True)
    onnx.save(model, tmp_path / "m.onnx", **elsewhere)
    with pytest.raises(WeightsError, match=r"m.onnx: .*other files.*onnx\.save\(onnx\.load"):
        build_teacher(settings(tmp_path / "m.onnx"))


def test_without_onnxruntime_the_error_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_teacher, "find_spec", lambda name: None if name == "onnxruntime" else find_spec(name))
    with pytest.raises(WeightsError, match=r"needs onnxruntime; run `pip install -r requirements/deploy\.txt`"):
        build_teacher(settings(write_model(tmp_path / "m.onnx")))


def test_a_gpu_needs_the_package_for_gpus(tmp_path):
    teacher = build_teacher(settings(write_model(tmp_path / "m.onnx")))
    with pytest.raises(WeightsError, match=r"CPUs only.*pip install onnxruntime-gpu"):
        teacher._open(torch.device("cuda"))


def export(weights: str, path: Path, **changes) -> None:
    network = build_backbone(plain_settings(weights, init_from=weights, **changes)).eval()
    example = torch.zeros(2, 3, 112, 112)
    names = dict(input_names=["input"], output_names=["embedding"], dynamic_axes={"input": {0: "N"}})
    torch.onnx.export(network, (example,), path, dynamo=False, **names)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's older exporter needs no example of a batch size
def test_an_exported_teacher_gives_the_same_losses(face_data, tmp_path):
    """Over 50 steps from trained weights: LFW's faces, the pretrained MobileFaceNet as .pth and as ONNX."""
    write_lfw(tmp_path / "set", face_data, 160)
    export(str(face_data / "mobilefacenet_y1_128.pth"), tmp_path / "y1.onnx", embedding_size=128)
    shared = [
        "--config", "config/lfw.py", f"rec={tmp_path / 'set'}", "width=0.125", "batch_size=16", "num_epoch=5",
        "log_every=1", "val_eval_every_n_epoch=0", "lr_schedule=step", "dtype=float32",
    ]  # fmt: skip
    train(SCRIPTS[0], shared, tmp_path / "before", f"teacher_embeddings={tmp_path / 'pth.npy'}", "lr=1.6")
    shared += [f"init_from={tmp_path / 'before' / '50backbone.pth'}", "lr=0.02", "warmup_epoch=0"]
    train(SCRIPTS[0], shared, tmp_path / "pth", f"teacher_embeddings={tmp_path / 'pth.npy'}")
    onnx_keys = ["teacher=onnx", f"pretrained_teacher_path={tmp_path / 'y1.onnx'}"]
    file = f"teacher_embeddings={tmp_path / 'onnx.npy'}"
    train(SCRIPTS[0], [*shared, *onnx_keys], tmp_path / "onnx", file)
    expected, found = metrics(tmp_path / "pth"), metrics(tmp_path / "onnx")
    worst = max(abs(one["loss"] / other["loss"] - 1) for one, other in zip(found, expected, strict=True))
    print(f"largest relative difference of a loss: {worst:.1e}")
    assert len(found) == 50 and worst < 1e-3
    settings = [*shared, *onnx_keys, file]
    refused(
        SCRIPTS[0], *settings, "onnx_mean=0", words=r"teacher\.scale is '\(pixel - 127\.5\) / 127\.5', not '\(pixel - 0"
    )
    refused(SCRIPTS[0], *shared, *onnx_keys, words="teacher = 'onnx' needs teacher_embeddings")
