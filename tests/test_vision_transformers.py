"""CVLFace's vision transformers and landmark network: golden numbers, key points, data types, and as teachers."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from fake_cuda import GPU, NeverWaits, fake_cuda
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
    recipe,
    settings,
)
from runs import metrics
from safetensors.torch import save_file
from teacher_files import assert_draws_no_random_numbers, describe
from torch import nn

from backbones import NETWORKS, build_teacher, cvlface_vit, find_teacher
from backbones.cvlface_landmarks import LandmarkNetwork
from config import load_config
from data.dataset import build_dataset
from data.teacher_cache import EmbeddingError
from train.loop import Trainer
from train.tasks import Distillation
from train.teachers import build_cached_teacher, build_live_teacher, require_same_weights
from utils.precision import cast_products
from utils.weights import WeightsError

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


@pytest.fixture
def narrow(monkeypatch) -> None:
    """The vision transformers have 64 channels and 2 blocks, because the full ones take long."""
    monkeypatch.setattr(cvlface_vit, "CHANNELS", 64)
    for name, shape in cvlface_vit.SHAPES.items():
        monkeypatch.setitem(cvlface_vit.SHAPES, name, shape._replace(depth=2))


def write_release(name: str, folder: Path, embedding_size: int) -> list[str]:
    """Write a release and a landmark network with the recipe's weights. Returns the settings that name them."""
    with torch.device("meta"):
        network = NETWORKS[name](EasyDict(settings(embedding_size=embedding_size), network=name))
    keys = {f"model.net.{key}": list(value.shape) for key, value in network.state_dict().items()}
    save_file({key: recipe(key, shape) for key, shape in keys.items()}, folder / WEIGHTS)
    save_file(golden_weights(LANDMARK_NETWORK), folder / "landmarks.safetensors")
    describe(folder, name.removeprefix("cvlface_"))
    landmarks = f"landmarks_path={folder / 'landmarks.safetensors'}"
    return [f"teacher={name}", f"pretrained_teacher_path={folder}", landmarks, f"embedding_size={embedding_size}"]


class BrightPlaces(nn.Module):
    """Five key points that move with the image: centers of its brightness to the powers 1 to 5."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        brightness = (images.float().mean(1, keepdim=True) + 2) ** torch.arange(1, 6).view(5, 1, 1)  # [B, 5, H, W]
        share = brightness / brightness.sum((2, 3), keepdim=True)
        places = (torch.arange(images.shape[3]) + 0.5) / images.shape[3]
        return torch.stack([(share.sum(2) * places).sum(2), (share.sum(3) * places).sum(2)], 2)


@pytest.fixture
def cfg(narrow, tmp_path) -> EasyDict:
    """Settings with a release of a ViT-B with KP-RPE. The config names another network, which does not count."""
    return load_config(overrides=[*write_release(KPRPE, tmp_path, 32), "teacher=cvlface_vit_base"])


@torch.no_grad()
def test_a_teacher_with_kprpe_finds_the_key_points_of_each_image_and_of_its_mirror_image(cfg):
    assert_draws_no_random_numbers(cfg)
    teacher = build_teacher(cfg)
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert "landmarks.safetensors: 338 tensors; " in teacher.loaded
    images, landmarks = golden_case(LANDMARK_NETWORK)
    assert_same(teacher.landmarks(images).numpy(), landmarks)
    assert_same(embed(teacher, images), embed(teacher, images, torch.from_numpy(landmarks)), tolerance=1e-5)
    teacher.landmark_network = BrightPlaces()
    points, mirrored = teacher.landmarks(images), images.float().flip(3)
    of_mirrored = torch.stack([1 - points[..., 0], points[..., 1]], 2)
    assert_same(embed(teacher, mirrored), embed(teacher, mirrored, of_mirrored), tolerance=1e-5)
    moved = embed(teacher, images, torch.from_numpy(landmarks) + 0.1)
    assert abs(moved - embed(teacher, images)).max() > 1e-3 * abs(moved).max()


@torch.no_grad()
def test_the_live_teacher_in_bfloat16_keeps_norms_and_key_points_in_float32(cfg):
    cfg.dtype = "bfloat16"
    live = build_live_teacher(cfg, CPU, find_teacher(cfg))
    norms = [module for module in live.modules() if isinstance(module, nn.LayerNorm)]
    of_landmarks = [*live.landmark_network.parameters(), *live.landmark_network.buffers()]
    assert len(norms) == 2 * 2 + 1 + 2 * 3
    assert {norm.weight.dtype for norm in norms} == {torch.float32}
    assert not any(isinstance(layer, nn.BatchNorm1d) for layer in live.feature)  # folded into the layers before
    assert {value.dtype for value in of_landmarks if value.is_floating_point()} == {torch.float32}
    assert live.blocks[0].attn.qkv.weight.dtype == live.keypoint_linear.weight.dtype == torch.bfloat16
    images, landmarks = golden_case(LANDMARK_NETWORK)
    images = images.float().contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        assert_same(live.landmarks(images).numpy(), landmarks)
        embeddings = live(images).float()
    assert torch.cosine_similarity(embeddings, build_teacher(cfg)(images)).min() > 0.999


@pytest.mark.skipif(not torch.__version__.startswith("2.14."), reason="fake_cuda.py depends on internals of torch 2.14")
@torch.no_grad()
def test_a_teacher_with_kprpe_mixes_no_devices_and_never_waits_on_a_gpu(narrow):
    with fake_cuda():
        teacher = NETWORKS[KPRPE](EasyDict(settings(), network=KPRPE)).eval()
        teacher.landmark_network = LandmarkNetwork().eval()
        teacher = cast_products(teacher, torch.bfloat16).to(GPU, memory_format=torch.channels_last)
        images = torch.empty(4, 3, 112, 112, device=GPU).contiguous(memory_format=torch.channels_last)
        with NeverWaits(), torch.autocast("cuda", torch.bfloat16):
            landmarks, embeddings = teacher.landmarks(images), teacher(images)
        assert (landmarks.shape, landmarks.dtype, landmarks.device) == ((4, 5, 2), torch.float32, GPU)
        assert (embeddings.shape, embeddings.device) == ((4, 512), GPU)


def test_a_teacher_with_kprpe_is_described_with_the_checksum_of_its_landmark_network(cfg, tmp_path):
    described = find_teacher(cfg).describe()
    landmarks = tmp_path / "landmarks.safetensors"
    assert described["network"] == KPRPE and described["landmarks_origin"] == str(landmarks)
    assert described["landmarks_sha256"] == hashlib.sha256(landmarks.read_bytes()).hexdigest()


def train(settings: list[str], output: Path, *more: str) -> Distillation:
    cfg = load_config(overrides=[*settings, f"output={output}", *more])
    dataset = build_dataset(cfg)
    task = Distillation(cfg, dataset, CPU)
    Trainer(cfg, task, dataset, CPU).run()
    return task


@pytest.mark.parametrize("name", CVLFACE_VIT)
def test_a_vision_transformer_teaches_a_mobilefacenet_live_and_from_the_file(name, narrow, small_run, tmp_path):
    more = ["dtype=float32", "max_steps=2", "num_workers=0", "val_targets=[]"]
    settings = [*small_run, *write_release(name, tmp_path, 16), *more]
    live = train(settings, tmp_path / "live")
    cached = train(settings, tmp_path / "cached", f"teacher_embeddings={tmp_path / 'teacher.npy'}")
    assert live.teacher == cached.teacher and live.teacher.startswith(f"{name}, RGB, sha256 ")
    assert ("key points sha256" in live.teacher) == (name == KPRPE)
    first, second = (metrics(tmp_path / run) for run in ("live", "cached"))
    assert len(first) == len(second) == 2
    assert second[0]["loss"] == pytest.approx(first[0]["loss"], rel=1e-3)


def test_embeddings_with_other_key_points_are_refused(narrow, small_run, tmp_path):
    path = tmp_path / "teacher.npy"
    settings = [*small_run, *write_release(KPRPE, tmp_path, 16), f"teacher_embeddings={path}", "num_workers=0"]

    def open_embeddings(*more: str) -> tuple[str, ...]:
        cfg = load_config(overrides=[*settings, *more])
        return build_cached_teacher(cfg, build_dataset(cfg), CPU)[1]

    open_embeddings()
    about = json.loads(path.with_suffix(".json").read_text())["about"]
    assert (about["teacher"], about["landmarks"]) == (str(tmp_path), str(tmp_path / "landmarks.safetensors"))
    others = {key: 2 * value for key, value in golden_weights(LANDMARK_NETWORK).items()}
    save_file(others, tmp_path / "others.safetensors")
    with pytest.raises(EmbeddingError, match=r"teacher\.landmarks_sha256 is '\w{64}', not '\w{64}'"):
        open_embeddings(f"landmarks_path={tmp_path / 'others.safetensors'}")
    with pytest.raises(EmbeddingError, match=r"embeddings by .*landmarks\.safetensors, but .* names .*gone, whose"):
        open_embeddings(f"landmarks_path={tmp_path / 'gone'}")
    (tmp_path / "landmarks.safetensors").unlink()
    by_name = "are not available: its embeddings were checked by its name only"
    assert f"the weights of the landmark network {by_name}" in open_embeddings()
    (tmp_path / WEIGHTS).rename(tmp_path / "kept")
    assert f"the weights of the teacher and of its landmark network {by_name}" in open_embeddings()
    save_file({"other": torch.ones(1)}, tmp_path / WEIGHTS)  # the teacher is compared, although key points are missing
    with pytest.raises(EmbeddingError, match=r"teacher\.sha256 is '\w{64}', not '\w{64}'"):
        open_embeddings()


def test_another_rank_with_other_weights_is_refused(cfg, tmp_path):
    wanted = find_teacher(cfg).describe()
    require_same_weights(find_teacher(cfg), {**wanted, "origin": "elsewhere", "landmarks_origin": "elsewhere"})
    refused = "rank 0 found other weights than rank 0"
    with pytest.raises(WeightsError, match=rf"^{tmp_path}/landmarks\.safetensors: {refused} .*landmarks_revision to"):
        require_same_weights(find_teacher(cfg), {**wanted, "landmarks_sha256": "0"})
    with pytest.raises(WeightsError, match=rf"^{tmp_path}/{WEIGHTS}: {refused} \(sha256\); .*teacher_revision to one"):
        require_same_weights(find_teacher(cfg), {**wanted, "sha256": "0"})
