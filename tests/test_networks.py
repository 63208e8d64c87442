"""Networks: golden key names and embeddings, real weights, every embedding size and width."""

import pytest
import torch
from golden_networks import CVLFACE, assert_same, embed, golden_case, golden_keys, recipe, settings

from backbones import build_backbone
from utils.weights import WeightsError

IRESNETS = ["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet50_se"]


@pytest.mark.parametrize("name", IRESNETS + CVLFACE)
def test_a_network_has_the_published_key_names_shapes_and_embeddings(name):
    keys = golden_keys(name)
    network = build_backbone(settings(network=name.removesuffix("_se"), SE=name.endswith("_se"))).eval()
    shapes = {key.removeprefix("model.net."): shape for key, shape in keys.items()}
    assert {key: list(value.shape) for key, value in network.state_dict().items()} == shapes
    network.load_state_dict({key.removeprefix("model.net."): recipe(key, shape) for key, shape in keys.items()})
    images, embeddings = golden_case(name)
    assert_same(embed(network.double(), images), embeddings)


def test_mobilefacenet_has_the_key_names_of_published_checkpoints():
    keys = build_backbone(settings()).state_dict()
    assert {
        "conv1.conv.weight", "conv1.prelu.weight", "conv2_dw.bn.weight", "conv_23.conv_dw.bn.running_var",
        "conv_23.conv.prelu.weight", "conv_3.model.0.project.conv.weight", "conv_3.model.3.conv.bn.bias",
        "conv_4.model.5.conv_dw.conv.weight", "conv_5.model.1.project.bn.num_batches_tracked",
        "conv_6_sep.conv.weight", "output_layer.conv_6_dw.conv.weight", "output_layer.linear.weight",
        "output_layer.bn.running_mean",
    } <= set(keys)  # fmt: skip
    assert not any(".project.prelu." in key for key in keys) and "output_layer.bn.weight" not in keys


def test_mobilefacenet_loads_every_tensor_of_a_real_checkpoint(face_data):
    path = face_data / "mobilefacenet_y1_128.pth"
    state = torch.load(path, weights_only=True)
    network = build_backbone(settings(embedding_size=128, init_from=path)).eval()
    assert set(network.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize("network", ["mobilefacenet", "iresnet18", "cvlface_ir18"])
@pytest.mark.parametrize("embedding_size", [8, 100])
def test_any_embedding_size_works(network, embedding_size):
    built = build_backbone(settings(network=network, embedding_size=embedding_size)).eval()
    assert embed(built, torch.zeros(1, 3, 112, 112)).shape == (1, embedding_size)


def test_the_width_factor_scales_the_parameters_but_not_the_key_names():
    networks = {width: build_backbone(settings(width=width)).eval() for width in (0.25, 0.5, 1.0, 1.5, 2.0)}
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks.values()]
    assert counts == sorted(set(counts))
    assert 3 < counts[-1] / counts[2] < 4  # convolutions grow with the square of the width, other layers with the width
    for network in networks.values():
        assert set(network.state_dict()) == set(networks[1.0].state_dict())
        assert embed(network, torch.zeros(1, 3, 112, 112)).shape == (1, 512)


def test_embeddings_are_not_normalised_and_every_weight_gets_a_gradient():
    network = build_backbone(settings(embedding_size=16, width=0.25)).train()
    embeddings = network(torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    embeddings.square().mul(torch.arange(16.0)).sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_a_student_starts_from_a_given_checkpoint_or_is_refused(tmp_path):
    path = tmp_path / "backbone.pth"
    first = build_backbone(settings(embedding_size=16, width=0.25))
    torch.save(first.state_dict(), path)
    again = build_backbone(settings(embedding_size=16, width=0.25, init_from=path))
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in again.state_dict().items())
    with pytest.raises(WeightsError, match=r"backbone\.pth.*width"):
        build_backbone(settings(embedding_size=16, width=0.5, init_from=path))
