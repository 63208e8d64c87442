"""CVLFace's vision transformers and landmark network: golden numbers, key points, and the live teacher's data types."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import torch
from easydict import EasyDict
from golden_networks import (
    CVLFACE_VIT,
    GOLDEN,
    LANDMARK_NETWORK,
    WEIGHTS,
    assert_same,
    embed,
    golden_case,
    golden_keypoints,
    golden_keys,
    golden_weights,
    load_golden_weights,
    release_settings,
    settings,
)
from safetensors.torch import save_file
from teacher_files import assert_draws_no_random_numbers, describe
from torch import nn

from backbones import NETWORKS, build_teacher, find_teacher
from backbones.cvlface_landmarks import LandmarkNetwork
from train.teachers import build_live_teacher

CPU = torch.device("cpu")
KPRPE = "cvlface_vit_base_kprpe"


def has_published_keys(network: nn.Module, name: str) -> bool:
    shapes = {key.removeprefix("model.net."): shape for key, shape in golden_keys(name).items()}
    return {key: list(value.shape) for key, value in network.state_dict().items()} == shapes


@pytest.mark.parametrize("name", CVLFACE_VIT)
def test_a_vision_transformer_has_the_published_key_names_shapes_and_embeddings(name):
    with torch.device("meta"):  # draws no weights, which takes time
        network = NETWORKS[name](EasyDict(settings(), network=name)).eval()
    assert has_published_keys(network, name)
    load_golden_weights(network, name)
    images, embeddings = golden_case(name)
    inputs = (images, golden_keypoints()) if name == KPRPE else (images,)
    assert_same(embed(network, *inputs), embeddings, tolerance=1e-5)
    assert_same(embed(network.double(), *(values[:1] for values in inputs)), embeddings[:1], tolerance=1e-5)


@torch.no_grad()
def test_the_landmark_network_has_the_published_key_names_shapes_and_predictions():
    network = LandmarkNetwork().eval()
    assert has_published_keys(network, LANDMARK_NETWORK)
    load_golden_weights(network, LANDMARK_NETWORK)
    images, landmarks = golden_case(LANDMARK_NETWORK)
    assert_same(embed(network, images), landmarks)
    predictions = network.predict(images.float())
    arrays = np.load(GOLDEN / "cvlface_vit_expected.npz")
    assert_same(predictions[:, 4:6].softmax(1)[:, 1:].numpy(), arrays["dfa_score"])
    assert_same(predictions[:, :4].numpy() / 160, arrays["dfa_bbox"])  # the public code divides the box once more
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(network(images).numpy(), landmarks)
    assert_same(embed(network.double(), images), landmarks)


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder with a release of a ViT-B with KP-RPE, and the file of the landmark network, landmarks.safetensors."""
    with TemporaryDirectory() as name:
        save_file(golden_weights(KPRPE), Path(name, WEIGHTS))
        save_file(golden_weights(LANDMARK_NETWORK), Path(name, "landmarks.safetensors"))
        yield describe(Path(name), KPRPE.removeprefix("cvlface_"))


@pytest.fixture
def cfg(folder) -> EasyDict:
    """Settings with this release. The config names another network, which does not count."""
    return release_settings(folder, teacher="cvlface_vit_base", landmarks_path=folder / "landmarks.safetensors")


@torch.no_grad()
def test_a_release_with_kprpe_finds_the_key_points_of_each_image_and_of_its_mirror_image(cfg):
    assert_draws_no_random_numbers(cfg)
    teacher = build_teacher(cfg)
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert teacher.loaded.startswith("283 tensors; ") and "landmarks.safetensors: 338 tensors; " in teacher.loaded
    images, embeddings = golden_case(KPRPE)
    _, landmarks = golden_case(LANDMARK_NETWORK)
    assert_same(embed(teacher, images, golden_keypoints()), embeddings, tolerance=1e-5)
    assert_same(teacher.landmarks(images).numpy(), landmarks)
    found = embed(teacher, images)
    assert_same(found, embed(teacher, images, torch.from_numpy(landmarks)), tolerance=1e-5)
    assert abs(found - embeddings).max() > 0.01 * abs(embeddings).max()
    mirrored = images.float().flip(3)
    assert abs(teacher.landmarks(mirrored).numpy() - landmarks).max() > 1e-4
    assert_same(embed(teacher, mirrored), embed(teacher, mirrored, teacher.landmarks(mirrored)), tolerance=1e-5)


@torch.no_grad()
def test_the_live_teacher_in_bfloat16_keeps_norms_and_key_points_in_float32(cfg):
    cfg.dtype = "bfloat16"
    live = build_live_teacher(cfg, CPU, find_teacher(cfg))
    norms = [module for module in live.modules() if isinstance(module, nn.LayerNorm)]
    of_landmarks = [*live.landmark_network.parameters(), *live.landmark_network.buffers()]
    assert len(norms) == 2 * 24 + 1 + 2 * 3
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in live.feature)  # folded into the layers before
    assert {value.dtype for value in of_landmarks if value.is_floating_point()} == {torch.float32}
    assert live.blocks[0].attn.qkv.weight.dtype == live.keypoint_linear.weight.dtype == torch.bfloat16
    images, _ = golden_case(KPRPE)
    images = images.float().contiguous(memory_format=torch.channels_last)
    _, landmarks = golden_case(LANDMARK_NETWORK)
    exact = build_teacher(cfg)(images)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(live.landmarks(images).numpy(), landmarks)
        embeddings = live(images).float()
    assert torch.cosine_similarity(embeddings, exact).min() > 0.999


def test_a_teacher_with_kprpe_is_described_with_the_checksum_of_its_landmark_network(cfg, folder):
    described = find_teacher(cfg).describe()
    landmarks = folder / "landmarks.safetensors"
    assert described["network"] == KPRPE and described["landmarks_origin"] == str(landmarks)
    assert described["landmarks_sha256"] == hashlib.sha256(landmarks.read_bytes()).hexdigest()
