"""Teachers: weights from files and folders load whole and frozen, or are refused with the fix."""

import argparse
import hashlib
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import numpy as np
import pytest
import torch
from easydict import EasyDict
from golden_networks import (
    CVLFACE,
    DESCRIPTION,
    WEIGHTS,
    assert_same,
    described,
    embed,
    golden_case,
    golden_weights,
    release_settings,
    settings,
)
from safetensors.torch import save_file

from backbones import build_backbone, build_teacher, find_teacher
from backbones.teacher import MissingWeights
from utils.weights import WeightsError

IMAGE = torch.zeros(1, 3, 112, 112)


class Malicious:
    """Makes a folder when it is unpickled by a loader that lets it."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


# --- weights files of our own networks -------------------------------------------------------------------------


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A MobileFaceNet of 32 dimensions in a file."""
    path = tmp_path / "checkpoint.pth"
    torch.save(build_backbone(settings(embedding_size=32)).state_dict(), path)
    return path


def plain_settings(path: str | os.PathLike, **changes) -> EasyDict:
    return settings(**{"teacher": "mobilefacenet", "embedding_size": 32, "pretrained_teacher_path": path, **changes})


def test_a_teacher_gives_the_embeddings_of_the_student_whose_weights_it_has(face_data):
    path = face_data / "mobilefacenet_y1_128.pth"
    student = build_backbone(settings(embedding_size=128, init_from=path)).eval()
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    teacher = build_teacher(plain_settings(path, embedding_size=128))
    assert np.array_equal(embed(teacher, images), embed(student, images))


def test_a_teacher_is_frozen_in_eval_mode_and_of_its_own_width(checkpoint):
    teacher = build_teacher(plain_settings(checkpoint, width=0.5))  # the student's width
    assert_frozen(teacher)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert teacher(IMAGE).shape == (1, 32)


def assert_frozen(teacher: torch.nn.Module) -> None:
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}
    assert {value.device.type for value in [*teacher.parameters(), *teacher.buffers()]} == {"cpu"}
    assert {name for name, _ in teacher.named_buffers()} <= set(teacher.state_dict())  # nothing is left unset


def test_a_teacher_draws_no_random_numbers(checkpoint, folder):
    for cfg in (plain_settings(checkpoint), release_settings(folder)):
        state = torch.get_rng_state()
        build_teacher(cfg)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_teacher_is_built_from_the_release_that_was_found_before(checkpoint):
    cfg = plain_settings(checkpoint)
    release = find_teacher(cfg)
    assert (release.network, release.weights, release.origin) == ("mobilefacenet", checkpoint, str(checkpoint))
    cfg.pretrained_teacher_path = "nowhere"
    assert build_teacher(cfg, release)(IMAGE).shape == (1, 32)


def test_the_identity_of_a_teacher_tells_network_bytes_colours_and_origin(checkpoint):
    assert find_teacher(plain_settings(checkpoint)).identity() == {
        "network": "mobilefacenet",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "colours": "RGB",
        "origin": str(checkpoint),
    }
    assert find_teacher(release_settings(checkpoint)).identity()["colours"] == "BGR"  # AdaFace's own


def test_a_narrow_teacher_loads_with_its_width_and_is_refused_without(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(build_backbone(settings(embedding_size=32, width=0.25)).state_dict(), path)
    assert build_teacher(plain_settings(path, teacher_width=0.25))(IMAGE).shape == (1, 32)
    with pytest.raises(WeightsError, match=r"narrow\.pth.*shapes differ.*teacher_width"):
        build_teacher(plain_settings(path))


def test_a_teacher_without_a_path_is_refused_where_its_embeddings_have_to_be_computed():
    with pytest.raises(WeightsError, match="pretrained_teacher_path"):
        build_teacher(plain_settings("", teacher_embeddings="absent.npy"))


@pytest.mark.parametrize("teacher", ["mobilefacenet", "iresnet18", "cvlface_ir18"])
def test_a_missing_file_is_refused_by_name(teacher, tmp_path):
    with pytest.raises(MissingWeights, match=r"absent\.pth: no such file.*pretrained_teacher_path"):
        build_teacher(plain_settings(tmp_path / "absent.pth", teacher=teacher))


@pytest.mark.parametrize("teacher", ["iresnet18", "cvlface_ir18"])
def test_a_file_of_another_network_is_refused_by_name(teacher, checkpoint):
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*keys missing.*keys unexpected.*weights of {teacher}"):
        build_teacher(plain_settings(checkpoint, teacher=teacher))


def test_a_teacher_of_another_embedding_size_is_refused_with_the_size_to_set(checkpoint, folder):
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.* 32 dimensions.* 64;.*set embedding_size=32$"):
        build_teacher(plain_settings(checkpoint, embedding_size=64))
    with pytest.raises(WeightsError, match=r"model\.safetensors.* 512 dimensions.* 128;.*set embedding_size=512$"):
        build_teacher(release_settings(folder, embedding_size=128))


KEY = "conv_6_sep.conv.weight"  # [512, 128, 1, 1]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(KEY), rf"1 keys missing \({KEY}\)"),
        (lambda state: state.update({"one.more": torch.zeros(2)}), r"1 keys unexpected \(one\.more\)"),
        (
            lambda state: state.update({KEY: torch.zeros(512, 64, 1, 1)}),
            rf"{KEY} is \[512, 64, 1, 1\] where .*512, 128",
        ),
        (lambda state: state[KEY].view(-1)[7].fill_(torch.nan), rf"not finite \({KEY}\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_by_the_key(checkpoint, change, words):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, checkpoint)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{words}"):
        build_teacher(plain_settings(checkpoint))


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
    with pytest.raises(WeightsError, match=re.escape(path.name)):
        build_teacher(plain_settings(path))
    assert not (tmp_path / "was_run").exists()


# --- CVLFace's and AdaFace's files -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ir18() -> dict[str, torch.Tensor]:
    return golden_weights("cvlface_ir18")


@pytest.fixture(scope="module")
def shared_folder(ir18) -> Iterator[Path]:
    with TemporaryDirectory() as name:
        save_file(ir18, Path(name, WEIGHTS))
        yield Path(name)


@pytest.fixture
def folder(shared_folder) -> Path:
    """A folder with the files of CVLFace's IR-18 release, RGB."""
    return describe(shared_folder, "ir18")


def describe(folder: Path, name: str, color_space: str = "RGB") -> Path:
    (folder / "pretrained_model").mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_text(described(name, color_space))
    return folder


@pytest.mark.parametrize("name", CVLFACE)
def test_a_release_in_a_folder_gives_the_golden_embeddings(name, scratch):
    save_file(golden_weights(name), scratch / WEIGHTS)
    describe(scratch, name.removeprefix("cvlface_"))
    images, embeddings = golden_case(name)
    teacher = build_teacher(release_settings(scratch, teacher=name))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images), embeddings)


@pytest.mark.parametrize("teacher", ["cvlface_ir18", "cvlface_ir50"])
def test_model_yaml_says_which_network_and_which_colours(teacher, folder):
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(release_settings(folder, teacher=teacher)).double(), images), embeddings)
    describe(folder, "ir18", "BGR")
    turned = build_teacher(release_settings(folder, teacher=teacher)).double()
    assert_same(embed(turned, images.flip(1)), embeddings)
    assert abs(embed(turned, images) - embeddings).max() > 0.01 * abs(embeddings).max()


def test_float16_weights_make_a_float32_teacher(ir18, scratch):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in ir18.items()}
    save_file(halves, scratch / WEIGHTS)
    teacher = build_teacher(release_settings(describe(scratch, "ir18")))
    assert_frozen(teacher)
    state = teacher.state_dict()
    assert all(torch.equal(state[key.removeprefix("model.net.")], value.to(ir18[key])) for key, value in halves.items())
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(teacher, images), embeddings, tolerance=1e-2)


def test_adafaces_own_checkpoint_is_the_named_network_in_bgr_without_its_head(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    path, head = scratch / "adaface.ckpt", {"head.kernel": torch.zeros(512, 10), "head.t": torch.ones(1)}
    torch.save({"state_dict": {**state, **head}, "epoch": 3}, path)
    images, embeddings = golden_case("cvlface_ir18")
    teacher = build_teacher(release_settings(path))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images.flip(1)), embeddings)
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*keys missing.*weights of cvlface_ir50"):
        build_teacher(release_settings(path, teacher="cvlface_ir50"))


def test_classes_of_lightning_in_adafaces_own_checkpoint_are_left_aside(ir18, scratch, monkeypatch):
    """AdaFace was trained under PyTorch Lightning, which puts its callbacks' classes beside the weights."""
    module = ModuleType("pytorch_lightning.callbacks.model_checkpoint")
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": module.__name__})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    callbacks = {module.ModelCheckpoint: {"best_model_score": torch.ones(1)}}
    more = {"callbacks": callbacks, "hyper_parameters": {"args": argparse.Namespace(lr=0.1)}}
    torch.save({"state_dict": state, **more}, scratch / "adaface.ckpt")
    torch.save({"state_dict": state, **more, "code": Malicious(scratch / "was_run")}, scratch / "code.ckpt")
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.delitem(sys.modules, name)
    assert_frozen(build_teacher(release_settings(scratch / "adaface.ckpt")))
    with pytest.raises(WeightsError, match=r"code\.ckpt.*it refers to posix\.mkdir"):
        build_teacher(release_settings(scratch / "code.ckpt"))
    assert not (scratch / "was_run").exists()


def test_a_key_without_the_releases_prefix_does_not_stand_for_one_with_it(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, "input_layer.2.weight": torch.ones(64)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"1 keys unexpected \(input_layer\.2\.weight, without model\."):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


@pytest.mark.parametrize("more", ["model.one.more", "one.more"])
def test_adafaces_own_checkpoint_with_an_unknown_key_is_refused_by_it(more, ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, more: torch.zeros(2)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*1 keys unexpected \(one\.more"):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


BATCHNORM = "model.net.output_layer.0.weight"  # [512]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda state: state.pop(BATCHNORM), r"1 keys missing \(output_layer\.0\.weight\)"),
        (lambda state: state.update({"model.net.one.more": torch.zeros(2)}), r"1 keys unexpected \(one\.more\)"),
        (lambda state: state.update({BATCHNORM: torch.ones(7)}), r"output_layer\.0\.weight is \[7\] where .* \[512\]"),
    ],
)
def test_a_release_whose_weights_do_not_fit_is_refused_by_the_key(change, words, ir18, scratch):
    state = dict(ir18)
    change(state)
    save_file(state, scratch / WEIGHTS)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{words}.*weights of cvlface_ir18"):
        build_teacher(release_settings(describe(scratch, "ir18")))


@pytest.mark.parametrize(
    ("description", "words"),
    [
        (
            described("vit_base"),
            r"'vit_base'.*none of ours \(ir18, ir50, ir101\).*minchul/cvlface_adaface_ir50_webface4m",
        ),
        ("color_space: RGB\n", r"name.*none of ours \(ir18, ir50, ir101\).*minchul/cvlface_adaface_ir50_webface4m"),
        ("", "none of ours"),
        ("- ir18\n- RGB\n", "none of ours"),
        ("name: ir18\n", "color_space is None where RGB or BGR"),
        (described("ir18", "GRAY"), "color_space is 'GRAY' where RGB or BGR"),
        ("name: [ir18\ncolor_space: RGB\n", "not YAML.*fetch it again"),
        ("name: ir18\ncolor_space: RGB\nmore: !!python/object/apply:os.mkdir [MARK]\n", "not YAML"),
    ],
)
def test_a_model_yaml_of_no_network_of_ours_is_refused_with_the_reason(description, words, folder, tmp_path):
    (folder / DESCRIPTION).write_text(description.replace("MARK", str(tmp_path / "was_run")))
    with pytest.raises(WeightsError, match=rf"model\.yaml: .*{words}"):
        build_teacher(release_settings(folder))
    assert not (tmp_path / "was_run").exists()


def test_a_folder_without_one_of_the_two_files_is_refused_by_that_file(tmp_path):
    with pytest.raises(MissingWeights, match=r"pretrained_model/model\.yaml: no such file.*model\.safetensors and"):
        build_teacher(release_settings(tmp_path))
    with pytest.raises(MissingWeights, match=r"model\.safetensors: no such file.*pretrained_model/model\.yaml"):
        build_teacher(release_settings(describe(tmp_path, "ir18")))


def test_a_safetensors_file_is_refused_for_the_folder_that_holds_it(folder):
    with pytest.raises(WeightsError, match=r"name the folder that holds model\.safetensors and .*model\.yaml"):
        build_teacher(release_settings(folder / WEIGHTS))


@pytest.mark.parametrize("file", [WEIGHTS, "adaface.ckpt"])
def test_code_in_a_release_is_never_run(file, tmp_path):
    mark = tmp_path / "was_run"
    torch.save({"state_dict": {"model.net.input_layer.0.weight": Malicious(mark)}}, tmp_path / file)
    (tmp_path / "wrapper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(tmp_path, "ir18")
    with pytest.raises(WeightsError, match=re.escape(file)):
        build_teacher(release_settings(tmp_path if file == WEIGHTS else tmp_path / file))
    assert not mark.exists()
