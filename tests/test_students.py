"""Students of torchvision and timm, variants of MobileFaceNet, and a student that starts with a new last layer."""

import importlib.util
import re
import shutil
import sys
from functools import cache
from pathlib import Path
from unittest import mock

import pytest
import torch
from golden_networks import embed, settings
from runs import assert_same_checkpoint, metrics, train
from torch import nn
from torchvision.models import get_model

from backbones import build_backbone
from backbones.cost import describe_cost
from backbones.mobilefacenet import SLOPE, MobileFaceNet
from config import ConfigError
from train.tasks import Standalone
from utils.errors import InputError
from utils.weights import WeightsError

TORCHVISION, TIMM = "torchvision/shufflenet_v2_x0_5", "timm/lcnet_050"
needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install -r requirements/timm.txt"
)
libraries = pytest.mark.parametrize("network", [TORCHVISION, pytest.param(TIMM, marks=needs_timm)])


SCRIPT = "train/train_AdaDistill.py"
RANDOM = "torchvision/efficientnet_b0"
OF_LIBRARY = ["num_epoch=1", "checkpoint_every=3"]


@pytest.fixture(scope="module")
def trained(small_run, tmp_path_factory):
    """The output folder of an epoch of 6 steps with a network."""

    @cache
    def output(network: str) -> Path:
        folder = tmp_path_factory.mktemp("run")
        train(SCRIPT, small_run, folder, *OF_LIBRARY, f"network={network}")
        return folder

    return output


@libraries
def test_a_network_of_a_library_leaves_a_7x7_map_and_trains_every_weight(network):
    student = build_backbone(settings(network=network, embedding_size=16))
    assert student.training
    assert student.features(torch.zeros(2, 3, 112, 112)).shape[2:] == (7, 7)
    student(torch.randn(4, 3, 112, 112)).square().mul(torch.arange(16.0)).sum().backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in student.parameters())


def test_apart_from_the_stride_the_layers_are_those_of_the_library():
    """With images of 112 pixels and half the stride, each layer sees maps as large as the library's with 224."""
    student = build_backbone(settings(network=TORCHVISION, embedding_size=16)).eval()
    original = get_model(TORCHVISION.partition("/")[2], weights=None).eval()
    original.load_state_dict(student.features.state_dict(), strict=False)
    original.conv1[0].stride = (1, 1)
    seen = []
    original.conv5.register_forward_hook(lambda module, inputs, output: seen.append(output))
    images = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        original(images)
        torch.testing.assert_close(student.features(images), seen[0], rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:The default weight init", "ignore:NOTE. The nodes")
@pytest.mark.parametrize("name", ["densenet121", "inception_v3", "mobilenet_v3_small"])
def test_the_last_map_is_the_one_that_torchvision_finds(name):
    """densenet121 has a ReLU that is no layer of it, inception_v3 an auxiliary head between its layers."""
    from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

    torch.manual_seed(0)
    student = build_backbone(settings(network=f"torchvision/{name}", embedding_size=16)).eval()
    torch.manual_seed(0)
    original = get_model(name, weights=None).eval()
    ours, first = (next(m for m in network.modules() if isinstance(m, nn.Conv2d)) for network in (student, original))
    first.stride, first.padding = ours.stride, ours.padding
    in_training, in_eval = get_graph_node_names(original)
    outputs = create_feature_extractor(original, train_return_nodes=in_training, eval_return_nodes=in_eval).eval()
    images = torch.randn(1, 3, 112, 112)
    with torch.no_grad():
        found = [value for value in outputs(images).values() if isinstance(value, torch.Tensor) and value.dim() == 4]
        expected = [value for value in found if value.shape[2] > 1][-1]
        torch.testing.assert_close(student.features(images), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("network", "kernel"),
    [("torchvision/squeezenet1_1", 14), pytest.param("timm/edgenext_x_small", 7, marks=needs_timm)],
    ids=["more pixels", "first stride 4"],
)
def test_the_head_fits_the_map_of_other_networks(network, kernel):
    student = build_backbone(settings(network=network, embedding_size=16)).eval()
    assert student.output_layer.conv_6_dw.conv.kernel_size == (kernel, kernel)
    assert embed(student, torch.zeros(1, 3, 112, 112)).shape == (1, 16)


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ("torchvision/resnet19", "no such network in torchvision, the most similar is 'resnet18'"),
        ("torchvision/fcn_resnet50", "no such network in torchvision"),
        ("torchvision", "must be one of .*timm/NAME"),
        ("mxnet/resnet18", "must be one of .*torchvision/NAME"),
        pytest.param("timm/mobilenetv4_conv_smal", ".*similar is 'mobilenetv4_conv_small'", marks=needs_timm),
    ],
)
def test_an_unknown_network_is_refused_with_the_most_similar_one(network, message):
    with pytest.raises(ConfigError, match=f"^network = '{network}': {message}"):
        settings(network=network)


def test_without_timm_the_error_names_the_file_to_install():
    message = r"timm cannot be imported .*pip install -r .*requirements/timm\.txt"
    without = mock.patch.dict(sys.modules, {"timm": None, "timm.models": None})
    with without, pytest.raises(ConfigError, match=message):
        settings(network="timm/resnet18")


def test_a_network_that_leaves_no_map_is_refused():
    with pytest.raises(InputError, match=r"^network = 'torchvision/vit_b_32': leaves no map"):
        build_backbone(settings(network="torchvision/vit_b_32"))


@pytest.mark.parametrize("network", [RANDOM, pytest.param(TIMM, marks=needs_timm)])
def test_a_network_of_a_library_trains_and_is_scored(network, trained):
    folder = trained(network)
    log = (folder / "training.log").read_text()
    assert re.search(rf"student: {network}: [\d.]+ M parameters, [\d.]+ G multiplications per image", log)
    assert "verification.pairs.Accuracy-Flip" in metrics(folder)[-1]


def test_a_network_that_draws_random_numbers_resumes_bit_equal(trained, small_run, tmp_path):
    """efficientnet_b0 leaves out whole blocks at random, and the resumed run starts its workers in its first step."""
    folder = trained(RANDOM)
    for path in folder.glob("3*"):
        shutil.copy(path, tmp_path)
    train(SCRIPT, small_run, tmp_path, *OF_LIBRARY, f"network={RANDOM}", "global_step=3")
    assert_same_checkpoint(folder, tmp_path, 6)


def test_the_cost_of_a_student_is_that_of_its_layers():
    """By hand: a 3x3 convolution to 64 maps of 56 x 56, and a linear layer from 64 numbers to 5."""
    conv, linear = nn.Conv2d(3, 64, 3, 2, 1), nn.Linear(64, 5)
    network = nn.Sequential(conv, nn.AdaptiveAvgPool2d(1), nn.Flatten(), linear)
    multiplications = 56 * 56 * 64 * 27 + 64 * 5
    text = describe_cost(network)
    assert network.training and text.startswith(f"{(64 * 27 + 64 + 64 * 5 + 5) / 1e6:.2f} M parameters")
    assert f", {multiplications / 1e9:.3f} G multiplications" in text


@pytest.mark.parametrize(("activation", "slope"), [("relu", 0.0), ("leaky_relu", SLOPE)])
def test_another_activation_is_a_prelu_with_fixed_slopes(activation, slope):
    fixed = build_backbone(settings(width=0.25, embedding_size=16, activation=activation)).eval()
    prelu = build_backbone(settings(width=0.25, embedding_size=16)).eval()
    weights = {key: torch.full_like(value, slope) for key, value in prelu.state_dict().items() if ".prelu." in key}
    assert weights and fixed.state_dict().keys() == prelu.state_dict().keys() - weights.keys()
    prelu.load_state_dict({**fixed.state_dict(), **weights})
    images = torch.randn(2, 3, 112, 112)
    torch.testing.assert_close(embed(fixed, images), embed(prelu, images), rtol=1e-5, atol=1e-6)


def test_squeeze_and_excitation_scales_the_residual_of_every_bottleneck():
    """With weights of 0, each scale is sigmoid(0) = 1/2, as if the BatchNorm before had half its scale and offset."""
    excited = build_backbone(settings(width=0.125, embedding_size=16, SE=True)).eval()
    plain = build_backbone(settings(width=0.125, embedding_size=16)).eval()
    blocks = {key.partition(".fc1")[0] for key in excited.state_dict() if ".fc1" in key}
    assert len(blocks) == 4 + 6 + 2 + 3
    with torch.no_grad():
        for name, weight in excited.named_parameters():
            if ".fc2" in name:
                weight.zero_()
    state = {key: value.clone() for key, value in excited.state_dict().items() if ".se_block." not in key}
    for block in blocks:
        for kind in ("weight", "bias"):
            state[f"{block.removesuffix('.se_block')}.project.bn.{kind}"] /= 2
    plain.load_state_dict(state)
    images = torch.randn(2, 3, 112, 112)
    torch.testing.assert_close(embed(excited, images), embed(plain, images), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("network", ["mobilefacenet", "iresnet18", TORCHVISION])
def test_a_student_may_start_with_a_new_last_layer(network, tmp_path):
    changes = dict(network=network, width=0.25)
    first = build_backbone(settings(embedding_size=16, **changes))
    torch.save(first.state_dict(), tmp_path / "w.pth")
    cfg = settings(embedding_size=24, init_from=tmp_path / "w.pth", **changes)
    torch.manual_seed(1)
    student = build_backbone(cfg, new_last_layer=True)
    torch.manual_seed(1)
    fresh = build_backbone(settings(embedding_size=24, **changes)).state_dict()
    old, new = first.state_dict(), student.state_dict()
    resized = [key for key in new if new[key].shape != old[key].shape]
    assert resized and all(torch.equal(new[key], fresh[key] if key in resized else old[key]) for key in new)
    assert f"16 dimensions instead of 24, so the last layer starts anew and {', '.join(resized)}" in student.loaded
    with pytest.raises(WeightsError, match="16 dimensions, but embedding_size is 24"):
        build_backbone(cfg)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("conv1.conv.weight"),
        lambda state: state.update({"conv1.conv.weight": state["conv1.conv.weight"][:4]}),
        lambda state: state["conv1.conv.weight"].fill_(float("nan")),
        lambda state: state.update(more=torch.zeros(3)),
    ],
    ids=["missing", "shape", "not finite", "unexpected"],
)
def test_a_new_last_layer_excuses_no_other_difference(spoil, tmp_path):
    state = MobileFaceNet(16, 0.125).state_dict()
    spoil(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(WeightsError):
        build_backbone(settings(embedding_size=24, width=0.125, init_from=tmp_path / "w.pth"), new_last_layer=True)


def test_a_run_that_starts_with_a_new_last_layer_says_so(tmp_path):
    torch.save(MobileFaceNet(24, 0.125).state_dict(), tmp_path / "w.pth")
    cfg = settings(embedding_size=16, width=0.125, num_classes=3, init_from=tmp_path / "w.pth")
    notes = Standalone(cfg, torch.device("cpu")).notes
    assert any("24 dimensions instead of 16" in note for note in notes)
