"""Teachers from CVLFace's releases and AdaFace's checkpoints: the golden embeddings, or refused with what to do."""

import argparse
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import pytest
import torch
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
from teacher_files import Malicious, assert_draws_no_random_numbers, assert_frozen, describe

from backbones import build_backbone, build_teacher
from backbones.teacher import MissingWeights
from utils.weights import WeightsError


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


@pytest.mark.parametrize("name", CVLFACE)
def test_a_release_in_a_folder_gives_the_golden_embeddings(name, scratch):
    save_file(golden_weights(name), scratch / WEIGHTS)
    describe(scratch, name.removeprefix("cvlface_"))
    images, embeddings = golden_case(name)
    teacher = build_teacher(release_settings(scratch, teacher=name))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images), embeddings)


@pytest.mark.parametrize("teacher", ["cvlface_ir18", "cvlface_ir50"])
def test_model_yaml_names_the_network_and_its_colours(teacher, folder):
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(build_teacher(release_settings(folder, teacher=teacher)).double(), images), embeddings)
    describe(folder, "ir18", "BGR")
    reversed_teacher = build_teacher(release_settings(folder, teacher=teacher)).double()
    assert_same(embed(reversed_teacher, images.flip(1)), embeddings)
    assert abs(embed(reversed_teacher, images) - embeddings).max() > 0.01 * abs(embeddings).max()


def test_a_teacher_with_float16_weights_is_loaded_in_float32(ir18, scratch):
    halves = {key: value.half() if value.is_floating_point() else value for key, value in ir18.items()}
    save_file(halves, scratch / WEIGHTS)
    teacher = build_teacher(release_settings(describe(scratch, "ir18")))
    assert_frozen(teacher)
    state = teacher.state_dict()
    assert all(torch.equal(state[key.removeprefix("model.net.")], value.to(ir18[key])) for key, value in halves.items())
    images, embeddings = golden_case("cvlface_ir18")
    assert_same(embed(teacher, images), embeddings, tolerance=1e-2)


def test_a_checkpoint_of_adaface_is_loaded_as_the_named_network_in_bgr_without_its_head(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    path, head = scratch / "adaface.ckpt", {"head.kernel": torch.zeros(512, 10), "head.t": torch.ones(1)}
    torch.save({"state_dict": {**state, **head}, "epoch": 3}, path)
    images, embeddings = golden_case("cvlface_ir18")
    teacher = build_teacher(release_settings(path))
    assert_frozen(teacher)
    assert_same(embed(teacher.double(), images.flip(1)), embeddings)
    said = "found under 'state_dict'; prefix 'model.' removed; 2 left out (head.kernel, head.t)"
    assert teacher.loaded == f"{len(state)} tensors; {said}"
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*missing keys.*weights of cvlface_ir50"):
        build_teacher(release_settings(path, teacher="cvlface_ir50"))


def test_classes_of_lightning_in_a_checkpoint_of_adaface_are_ignored(ir18, scratch, monkeypatch):
    """AdaFace was trained with PyTorch Lightning, which stores classes of its callbacks besides the weights."""
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


@pytest.mark.parametrize("prefix", ["", "model.", "module.model.net."])
def test_a_release_in_a_folder_may_have_another_prefix_or_none(prefix, ir18, scratch):
    save_file({prefix + key.removeprefix("model.net."): value for key, value in ir18.items()}, scratch / WEIGHTS)
    images, embeddings = golden_case("cvlface_ir18")
    teacher = build_teacher(release_settings(describe(scratch, "ir18")))
    assert_same(embed(teacher.double(), images), embeddings)
    assert teacher.loaded == "; ".join([f"{len(ir18)} tensors", *[f"prefix {prefix!r} removed"] * bool(prefix)])


def test_a_file_of_a_release_may_be_scored_as_a_student_which_takes_rgb(ir18, scratch):
    save_file(ir18, scratch / WEIGHTS)
    images, embeddings = golden_case("cvlface_ir18")
    network = build_backbone(settings(network="cvlface_ir18", init_from=scratch / WEIGHTS)).eval()
    assert_same(embed(network.double(), images), embeddings)


@pytest.mark.parametrize("prefix", ["", "model.net.", "net."])
def test_a_file_without_the_prefix_of_adaface_is_refused_because_its_colours_are_unknown(prefix, ir18, scratch):
    torch.save({prefix + key.removeprefix("model.net."): value for key, value in ir18.items()}, scratch / "ir18.pt")
    with pytest.raises(
        WeightsError, match=r"ir18\.pt: the keys have .*colours are unknown; put .*model\.safetensors, "
    ):
        build_teacher(release_settings(scratch / "ir18.pt"))


def test_a_key_without_the_prefix_is_not_confused_with_the_key_with_it(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, "input_layer.2.weight": torch.ones(64)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"unexpected keys: 1 \(input_layer\.2\.weight, without model\."):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


def test_a_checkpoint_of_adaface_with_an_unknown_key_is_refused_with_the_key(ir18, scratch):
    state = {"model." + key.removeprefix("model.net."): value for key, value in ir18.items()}
    torch.save({"state_dict": {**state, "model.one.more": torch.zeros(2)}}, scratch / "adaface.ckpt")
    with pytest.raises(WeightsError, match=r"adaface\.ckpt.*unexpected keys: 1 \(one\.more"):
        build_teacher(release_settings(scratch / "adaface.ckpt"))


BATCHNORM = "model.net.output_layer.0.weight"  # [512]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(BATCHNORM), r"missing keys: 1 \(output_layer\.0\.weight\)"),
        (lambda state: state.update({"model.net.one.more": torch.zeros(2)}), r"unexpected keys: 1 \(one\.more\)"),
        (lambda state: state.update({BATCHNORM: torch.ones(7)}), r"output_layer\.0\.weight is \[7\], but .* \[512\]"),
    ],
)
def test_a_release_whose_weights_do_not_fit_is_refused_with_the_key(change, message, ir18, scratch):
    state = dict(ir18)
    change(state)
    save_file(state, scratch / WEIGHTS)
    with pytest.raises(WeightsError, match=rf"model\.safetensors.*{message}.*weights of cvlface_ir18"):
        build_teacher(release_settings(describe(scratch, "ir18")))


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (described("swin"), r"'swin'.*expected ir18, ir50, ir101, .*\).*minchul/cvlface_adaface_ir50_webface4m"),
        (described("vit_small_kprpe"), r"'small' with rpe_config .expected.*with rpe_config: base"),
        ("color_space: RGB\n", r"name.*expected ir18, ir50, ir101, .*\).*minchul/cvlface_adaface_ir50_webface4m"),
        ("", "an empty file"),
        ("<!doctype html>", "a web page"),
        ("- ir18\n- RGB\n", "name is None .expected ir18"),
        ("name: ir18\n", "color_space is None \\(expected RGB or BGR"),
        (described("ir18", "GRAY"), "color_space is 'GRAY' \\(expected RGB or BGR"),
        ("name: [ir18\ncolor_space: RGB\n", "not YAML.*download it again"),
        ("name: ir18\ncolor_space: RGB\nmore: !!python/object/apply:os.mkdir [MARK]\n", "not YAML"),
    ],
)
def test_a_model_yaml_of_an_unsupported_network_is_refused_with_the_reason(description, message, folder, tmp_path):
    (folder / DESCRIPTION).write_text(description.replace("MARK", str(tmp_path / "was_run")))
    with pytest.raises(WeightsError, match=rf"model\.yaml: .*{message}"):
        build_teacher(release_settings(folder))
    assert not (tmp_path / "was_run").exists()


def test_a_folder_without_one_of_the_two_files_is_refused_with_its_name(tmp_path):
    with pytest.raises(MissingWeights, match=r"pretrained_model/model\.yaml: no such file.*model\.safetensors and"):
        build_teacher(release_settings(tmp_path))
    with pytest.raises(MissingWeights, match=r"model\.safetensors: no such file.*pretrained_model/model\.yaml"):
        build_teacher(release_settings(describe(tmp_path, "ir18")))


def test_a_safetensors_file_is_refused_with_a_request_for_its_folder(folder):
    with pytest.raises(WeightsError, match=r"expected its folder, with model\.safetensors and .*model\.yaml"):
        build_teacher(release_settings(folder / WEIGHTS))


@pytest.mark.parametrize("file", [WEIGHTS, "adaface.ckpt"])
def test_code_in_a_release_is_never_executed(file, tmp_path):
    mark = tmp_path / "was_run"
    torch.save({"state_dict": {"model.net.input_layer.0.weight": Malicious(mark)}}, tmp_path / file)
    (tmp_path / "wrapper.py").write_text(f"import os\nos.mkdir({str(mark)!r})\n")
    describe(tmp_path, "ir18")
    with pytest.raises(WeightsError, match=re.escape(file)):
        build_teacher(release_settings(tmp_path if file == WEIGHTS else tmp_path / file))
    assert not mark.exists()


def test_building_a_teacher_draws_no_random_numbers(folder):
    assert_draws_no_random_numbers(release_settings(folder))


def test_a_release_of_another_embedding_size_is_refused_with_the_size_to_set(folder):
    with pytest.raises(WeightsError, match=r"model\.safetensors.* 512 dimensions.* 128; set embedding_size=512$"):
        build_teacher(release_settings(folder, embedding_size=128))
