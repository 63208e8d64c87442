"""The exported ONNX file: raw pixels in, torch's embeddings out, in onnxruntime and in OpenCV."""

import json

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from golden_networks import recipe, settings
from runs import refused
from torch import nn
from training_sets import png

from backbones import build_backbone
from backbones.folding import fold_batch_norm
from data.bin_set import write_bin
from deploy import export_onnx, exported_model
from deploy.exported_model import LARGEST_DIFFERENCE, largest_differences, require_same, to_onnx
from deploy.pixels import UNIT_LENGTH
from deploy.sample_images import draw_patterns, sample_images
from utils.errors import InputError

SMALL = {"width": 0.125, "embedding_size": 16}


def make_network(**changes):
    network = build_backbone(settings(**{**SMALL, **changes}))
    network.load_state_dict({key: recipe(key, list(value.shape)) for key, value in network.state_dict().items()})
    return network.eval()


def cosines(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return (one * other).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(other, axis=1)


@pytest.mark.parametrize("changes", [{}, {"activation": "relu", "SE": True}, {"network": "iresnet18"}])
def test_onnxruntime_and_opencv_give_the_embeddings_of_torch(tmp_path, changes):
    network = make_network(**changes)
    model = to_onnx(fold_batch_norm(make_network(**changes)))
    onnx.save(model, tmp_path / "model.onnx")
    pixels = draw_patterns(5)
    with torch.no_grad():
        expected = network((pixels.permute(0, 3, 1, 2).double().float() - 127.5) / 127.5).double().numpy()
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    (entry,), (result,) = session.get_inputs(), session.get_outputs()
    assert (entry.shape[1:], entry.type, result.shape[1:]) == ([3, 112, 112], "tensor(float)", [16])
    assert isinstance(entry.shape[0], str) and result.shape[0] == entry.shape[0]
    batch = pixels.permute(0, 3, 1, 2).float().numpy()
    assert np.allclose(session.run(None, {entry.name: batch})[0], expected, rtol=1e-3, atol=1e-4 * abs(expected).max())
    names = [node.name for node in model.graph.node[:8]]
    assert any(name.startswith("Sub") for name in names) and any(name.startswith("Mul") for name in names)
    if "network" not in changes:
        recogniser = cv2.FaceRecognizerSF.create(str(tmp_path / "model.onnx"), "")
        found = [recogniser.feature(np.ascontiguousarray(image.numpy()[..., ::-1]))[0] for image in pixels]
        assert cosines(np.stack(found), expected).min() > 0.9999


class Gated(nn.Module):
    """A squeeze-and-excitation block as in MobileNetV3, and an embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.gate, self.last = nn.Conv2d(3, 8, 7, 4), nn.Conv2d(8, 8, 1), nn.Linear(8 * 7 * 7, 16)

    def forward(self, x):
        x = F.hardswish(self.stem(x))
        x = x * F.hardsigmoid(20 * self.gate(x.mean((2, 3), keepdim=True)))
        return self.last(F.adaptive_avg_pool2d(x, 7).flatten(1))


@pytest.mark.parametrize("half", [False, True])
def test_opencv_computes_hard_sigmoids_as_torch_does(tmp_path, half):
    torch.manual_seed(0)
    network, pixels = Gated().eval(), draw_patterns(5)
    with torch.no_grad():
        expected = network((pixels.permute(0, 3, 1, 2).float() - 127.5) / 127.5).double().numpy()
    model = to_onnx(network, half=half)
    batch = pixels.permute(0, 3, 1, 2).float().numpy()
    assert (
        cosines(onnxruntime.InferenceSession(model.SerializeToString()).run(None, {"input": batch})[0], expected).min()
        > 0.999
    )
    onnx.save(model, tmp_path / "m.onnx")
    recogniser = cv2.FaceRecognizerSF.create(str(tmp_path / "m.onnx"), "")
    found = [recogniser.feature(np.ascontiguousarray(image.numpy()[..., ::-1]))[0] for image in pixels]
    assert cosines(np.stack(found), expected).min() > (0.999 if half else 0.99999)


def test_unit_length_and_float16():
    pixels = draw_patterns(64)
    unit, half = to_onnx(make_network(), unit_length=True), to_onnx(make_network(), half=True)
    session = onnxruntime.InferenceSession(unit.SerializeToString())
    embeddings = session.run(None, {"input": pixels[:3].permute(0, 3, 1, 2).float().numpy()})[0]
    assert np.allclose(np.linalg.norm(embeddings, axis=1), 1, atol=1e-5)
    assert max(largest_differences(half, make_network(), pixels).values()) < 1e-4
    assert half.ByteSize() < 0.7 * unit.ByteSize()


def test_a_model_with_other_embeddings_is_refused():
    pixels, other = draw_patterns(64), make_network()
    with torch.no_grad():
        other.output_layer.linear.weight[0] *= 2
    differences = largest_differences(to_onnx(make_network()), other, pixels)
    assert set(differences) == {1, 7, 64} and min(differences.values()) > LARGEST_DIFFERENCE
    with pytest.raises(InputError, match="no file was written"):
        require_same(differences)
    with pytest.raises(InputError, match="differ from 1 by nan at batch 7"):
        require_same({1: 0.0, 7: float("nan")})


def test_the_script_writes_the_facts_into_the_file_and_no_file_if_embeddings_differ(tmp_path, monkeypatch, capsys):
    torch.save(make_network().state_dict(), tmp_path / "3backbone.pth")
    arguments = [
        "export_onnx.py", "--checkpoint", str(tmp_path / "3backbone.pth"), "--output", str(tmp_path / "m.onnx"),
        "width=0.125", "embedding_size=16", f"val_rec={tmp_path}",
    ]  # fmt: skip
    monkeypatch.setattr("sys.argv", arguments)
    export_onnx.main()
    facts = {entry.key: entry.value for entry in onnx.load(tmp_path / "m.onnx").metadata_props}
    assert facts["checkpoint"] == "3backbone.pth" and len(facts["checkpoint_sha256"]) == 64
    assert json.loads(facts["config"])["width"] == 0.125 and "not normalised" in facts["output"]
    assert json.loads(facts["difference_from_torch"])["images"] == "64 drawn patterns"
    assert (
        exported_model.facts(settings(), "", exported_model.Export(None, "", {}), True, None)["output"] == UNIT_LENGTH
    )
    assert "64 drawn patterns" in capsys.readouterr().out
    (tmp_path / "m.onnx").unlink()
    of_others = {"about": {"checkpoint_sha256": "0"}, "absent": [], "failed": [], "verification": {"lfw": {"AUC": 1}}}
    (tmp_path / "others.json").write_text(json.dumps(of_others))
    monkeypatch.setattr("sys.argv", [*arguments, "--results", str(tmp_path / "others.json")])
    with pytest.raises(InputError, match=r"others\.json: results of other weights"):
        export_onnx.main()
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.setattr(exported_model, "LARGEST_DIFFERENCE", -1.0)
    with pytest.raises(InputError, match="gives other embeddings"):
        export_onnx.main()
    assert not (tmp_path / "m.onnx").exists()


def test_a_set_with_few_images_is_repeated_up_to_the_largest_batch(tmp_path):
    write_bin(tmp_path / "few.bin", [png(face) for face in draw_patterns(6).numpy()], [True, False, True])
    images, source = sample_images(settings(), str(tmp_path / "few.bin"), 64)
    assert images.shape == (64, 112, 112, 3) and source == "6 faces of few.bin"
    assert torch.equal(images[:6], draw_patterns(6)) and torch.equal(images[60:], draw_patterns(4))


def test_another_ending_is_refused(tmp_path):
    torch.save(make_network().state_dict(), tmp_path / "b.pth")
    refused("deploy/export_onnx.py", "--checkpoint", str(tmp_path / "b.pth"), "--output", "m.pt", words="end in .onnx")
