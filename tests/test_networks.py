"""Networks: golden key names and embeddings, real weights, and teachers that load whole or not at all."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from easydict import EasyDict
from safetensors.torch import save_file

from backbones import build_backbone, build_teacher
from config import load_config
from utils.weights import WeightsError

GOLDEN = Path(__file__).parent / "golden"
IRESNETS = ["iresnet18", "iresnet34", "iresnet50", "iresnet100", "iresnet50_se"]
CVLFACE = ["cvlface_ir18", "cvlface_ir50", "cvlface_ir101"]


def settings(**changes) -> EasyDict:
    return load_config(overrides=[f"{key}={value}" for key, value in changes.items()])


def golden_keys(name: str) -> dict[str, list[int]]:
    """Key names and shapes of the published files; CVLFace's start with model.net."""
    return json.loads((GOLDEN / f"{name}_keys.json").read_text())


def recipe(key: str, shape: list[int]) -> torch.Tensor:
    """The numbers that tests/golden/README.md prescribes for the tensor of this name."""
    rng, last = np.random.default_rng(zlib.crc32(key.encode())), key.split(".")[-1]
    if last == "num_batches_tracked":
        return torch.zeros((), dtype=torch.int64)
    if last == "running_var":
        values = rng.uniform(0.5, 1.5, shape)
    elif last in ("running_mean", "bias"):
        values = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:
        values = rng.uniform(0.2, 0.8, shape)
    else:
        values = rng.standard_normal(shape) * np.sqrt(1 / np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


def golden_case(name: str) -> tuple[torch.Tensor, np.ndarray]:
    """Images [2, 3, 112, 112] and the embeddings [2, 512] that they must give, in float64."""
    family = "cvlface_ir" if name.startswith("cvlface") else "iresnet"
    arrays = np.load(GOLDEN / f"{family}_expected.npz")
    return torch.from_numpy(arrays["input"]).double(), arrays[name.removeprefix("cvlface_")]


@torch.no_grad()
def embed(network: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    return network(images.to(next(network.parameters()).dtype)).numpy()


def assert_same(found: np.ndarray, wanted: np.ndarray, tolerance: float = 1e-6) -> None:
    assert found.shape == wanted.shape
    assert abs(found - wanted).max() < tolerance * abs(wanted).max()


# --- students --------------------------------------------------------------------------------------------------


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


def test_mobilefacenet_loads_real_weights_strictly_and_knows_faces(face_data):
    path = face_data / "mobilefacenet_y1_128.pth"
    state = torch.load(path, weights_only=True)
    network = build_backbone(settings(embedding_size=128, init_from=path)).eval()
    assert set(network.state_dict()) == set(state)
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    teacher = build_teacher(settings(teacher="mobilefacenet", embedding_size=128, pretrained_teacher_path=path))
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert np.array_equal(embed(teacher, images), embed(network, images))


@pytest.mark.parametrize("network", ["mobilefacenet", "iresnet18", "cvlface_ir18"])
@pytest.mark.parametrize("embedding_size", [8, 100])
def test_any_embedding_size_works(network, embedding_size):
    built = build_backbone(settings(network=network, embedding_size=embedding_size)).eval()
    assert embed(built, torch.zeros(1, 3, 112, 112)).shape == (1, embedding_size)


def test_the_width_factor_scales_the_parameters_and_leaves_the_key_names():
    networks = {width: build_backbone(settings(width=width)).eval() for width in (0.25, 0.5, 1.0, 1.5, 2.0)}
    counts = [sum(weight.numel() for weight in network.parameters()) for network in networks.values()]
    assert counts == sorted(set(counts))
    assert 3 < counts[-1] / counts[2] < 4  # convolutions grow with the square of the width, the rest in proportion
    for network in networks.values():
        assert set(network.state_dict()) == set(networks[1.0].state_dict())
        assert embed(network, torch.zeros(1, 3, 112, 112)).shape == (1, 512)


def test_embeddings_are_raw_and_training_mode_gives_every_weight_a_gradient():
    network = build_backbone(settings(embedding_size=16, width=0.25)).train()
    embeddings = network(torch.randn(4, 3, 112, 112, generator=torch.Generator().manual_seed(0)))
    assert not torch.allclose(embeddings.norm(dim=1), torch.ones(4))
    embeddings.square().mul(torch.arange(16.0)).sum().backward()
    assert all(weight.grad is not None and torch.isfinite(weight.grad).all() for weight in network.parameters())


def test_a_student_starts_from_a_given_checkpoint_or_not_at_all(tmp_path):
    path = tmp_path / "backbone.pth"
    first = build_backbone(settings(embedding_size=16, width=0.25))
    torch.save(first.state_dict(), path)
    again = build_backbone(settings(embedding_size=16, width=0.25, init_from=path))
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in again.state_dict().items())
    with pytest.raises(WeightsError, match=r"backbone\.pth.*width"):
        build_backbone(settings(embedding_size=16, width=0.5, init_from=path))


# --- teachers --------------------------------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A MobileFaceNet of 32 dimensions in a file."""
    path = tmp_path / "checkpoint.pth"
    torch.save(build_backbone(settings(embedding_size=32)).state_dict(), path)
    return path


def teacher_settings(path: str | os.PathLike, **changes) -> EasyDict:
    return settings(**{"teacher": "mobilefacenet", "embedding_size": 32, "pretrained_teacher_path": path, **changes})


def test_a_teacher_is_frozen_in_eval_mode_and_of_its_own_width(checkpoint):
    teacher = build_teacher(teacher_settings(checkpoint, width=0.5))  # the student's width
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert teacher(torch.zeros(1, 3, 112, 112)).shape == (1, 32)


def test_a_narrow_teacher_loads_with_its_width_and_is_refused_without(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(build_backbone(settings(embedding_size=32, width=0.25)).state_dict(), path)
    assert build_teacher(teacher_settings(path, teacher_width=0.25))(torch.zeros(1, 3, 112, 112)).shape == (1, 32)
    with pytest.raises(WeightsError, match=r"narrow\.pth.*teacher_width"):
        build_teacher(teacher_settings(path))


def test_a_teacher_without_a_path_is_refused():
    with pytest.raises(WeightsError, match="pretrained_teacher_path"):
        build_teacher(teacher_settings(""))


def test_a_missing_file_is_refused_by_name(tmp_path):
    for teacher in ("mobilefacenet", "cvlface_ir18"):
        with pytest.raises(WeightsError, match=r"absent\.pth"):
            build_teacher(teacher_settings(tmp_path / "absent.pth", teacher=teacher))


@pytest.mark.parametrize("teacher", ["iresnet18", "cvlface_ir18"])
def test_a_file_of_another_network_is_refused_by_name(teacher, checkpoint):
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.*missing.*unexpected"):
        build_teacher(teacher_settings(checkpoint, teacher=teacher))


def test_a_file_of_another_embedding_size_is_refused_with_both_shapes(checkpoint):
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.*output_layer\.linear\.weight.*\[32, 512\].*\[64, 512\]"):
        build_teacher(teacher_settings(checkpoint, embedding_size=64))


def test_a_file_without_some_key_or_with_one_more_is_refused_by_that_key(checkpoint):
    state = torch.load(checkpoint, weights_only=True)
    weight = state.pop("conv_6_sep.conv.weight")
    torch.save(state, checkpoint)
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.*conv_6_sep\.conv\.weight"):
        build_teacher(teacher_settings(checkpoint))
    torch.save({**state, "conv_6_sep.conv.weight": weight, "one.more": weight}, checkpoint)
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.*one\.more"):
        build_teacher(teacher_settings(checkpoint))


class Malicious:
    """Runs a command when it is unpickled by a loader that lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


@pytest.mark.parametrize(
    "content", ["text", "empty", "truncated", "list", "nested", "no tensors", "code", "text in safetensors"]
)
def test_what_is_no_checkpoint_is_refused_by_name_and_never_run(content, checkpoint, tmp_path):
    path = tmp_path / ("weights.safetensors" if content == "text in safetensors" else "weights.pth")
    if content in ("text", "text in safetensors"):
        path.write_text("These are no weights.\n")
    elif content == "empty":
        path.write_bytes(b"")
    elif content == "truncated":
        path.write_bytes(checkpoint.read_bytes()[:100_000])
    else:
        values = {
            "list": [torch.zeros(3)],
            "nested": {"network": {"conv1.conv.weight": torch.zeros(3)}},
            "no tensors": {"epoch": 3},
            "code": {"conv1.conv.weight": Malicious(tmp_path / "was_run")},
        }
        torch.save(values[content], path)
    with pytest.raises(WeightsError, match=path.name.replace(".", r"\.")):
        build_teacher(teacher_settings(path))
    assert not (tmp_path / "was_run").exists()


# --- CVLFace and AdaFace releases ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ir18_weights() -> dict[str, torch.Tensor]:
    return {key: recipe(key, shape) for key, shape in golden_keys("cvlface_ir18").items()}


@pytest.fixture(scope="module")
def release(tmp_path_factory, ir18_weights) -> Path:
    """A folder with the files of a CVLFace release."""
    folder = tmp_path_factory.mktemp("cvlface")
    save_file(ir18_weights, folder / "model.safetensors")
    return describe(folder)


def describe(folder: Path, color_space: str = "color_space: RGB") -> Path:
    (folder / "pretrained_model").mkdir(exist_ok=True)
    description = f"name: ir18\ninput_size: [3, 112, 112]\n{color_space}\noutput_dim: 512\n"
    (folder / "pretrained_model" / "model.yaml").write_text(description)
    return folder


def cvlface_settings(path: Path, **changes) -> EasyDict:
    return settings(**{"teacher": "cvlface_ir18", "pretrained_teacher_path": path, **changes})


def test_a_cvlface_folder_gives_the_published_embeddings_and_bgr_turns_the_channels(release):
    images, embeddings = golden_case("cvlface_ir18")
    describe(release, "color_space: RGB")
    teacher = build_teacher(cvlface_settings(release))
    assert not teacher.training and not any(weight.requires_grad for weight in teacher.parameters())
    assert_same(embed(teacher.double(), images), embeddings)
    describe(release, "color_space: BGR")
    turned = build_teacher(cvlface_settings(release)).double()
    assert_same(embed(turned, images.flip(1)), embeddings)
    assert abs(embed(turned, images) - embeddings).max() > 0.01 * abs(embeddings).max()


@pytest.mark.parametrize("description", ["", "color_space: GRAY"])
def test_a_cvlface_folder_without_a_known_colour_space_is_refused_by_name(release, description):
    describe(release, description)
    with pytest.raises(WeightsError, match=r"model\.yaml.*color_space"):
        build_teacher(cvlface_settings(release))


def test_a_cvlface_folder_without_one_of_its_files_is_refused_by_that_file(release, tmp_path):
    with pytest.raises(WeightsError, match=r"model\.yaml"):
        build_teacher(cvlface_settings(tmp_path))
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        build_teacher(cvlface_settings(describe(tmp_path)))


def test_a_cvlface_folder_of_another_network_is_refused_by_name(release):
    describe(release)
    with pytest.raises(WeightsError, match=r"model\.yaml: the network is 'ir18'"):
        build_teacher(cvlface_settings(release, teacher="cvlface_ir50"))
    with pytest.raises(WeightsError, match="a ViT, which is none of our networks"):
        build_teacher(cvlface_settings("", teacher_repo_id="someone/cvlface_adaface_vit_base"))
    with pytest.raises(WeightsError, match=r"model\.safetensors.*output_layer"):
        build_teacher(cvlface_settings(release, embedding_size=128))


def test_adafaces_own_checkpoint_loads_without_its_head_and_takes_bgr(ir18_weights, tmp_path):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18_weights.items()}
    path = tmp_path / "adaface.ckpt"
    torch.save({"state_dict": {**state, "head.kernel": torch.zeros(512, 10)}, "epoch": 3}, path)
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(cvlface_settings(path)).double(), images.flip(1)), embeddings)
