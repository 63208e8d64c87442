"""Teachers from plain weights files: they are loaded completely and frozen, or refused with what to do."""

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_networks import embed, release_settings, settings
from teacher_files import IMAGE, Malicious, assert_draws_no_random_numbers, assert_frozen, plain_settings

from backbones import build_backbone, build_teacher, find_teacher
from backbones.teacher import MissingWeights
from utils.weights import WeightsError


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A file with the weights of a MobileFaceNet of 32 dimensions."""
    path = tmp_path / "checkpoint.pth"
    torch.save(build_backbone(settings(embedding_size=32)).state_dict(), path)
    return path


def test_a_teacher_gives_the_same_embeddings_as_a_student_with_its_weights(face_data):
    path = face_data / "mobilefacenet_y1_128.pth"
    student = build_backbone(settings(embedding_size=128, init_from=path)).eval()
    images = torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    teacher = build_teacher(plain_settings(path, embedding_size=128))
    assert np.array_equal(embed(teacher, images), embed(student, images))


def test_a_teacher_is_frozen_and_in_eval_mode_and_has_its_own_width(checkpoint):
    teacher = build_teacher(plain_settings(checkpoint, width=0.5))  # of the student
    assert_frozen(teacher)
    state = torch.load(checkpoint, weights_only=True)
    assert all(torch.equal(value, state[key]) for key, value in teacher.state_dict().items())
    assert teacher(IMAGE).shape == (1, 32)


def test_building_a_teacher_draws_no_random_numbers(checkpoint):
    assert_draws_no_random_numbers(plain_settings(checkpoint))


def test_a_teacher_can_be_built_from_a_release_that_was_found_before(checkpoint):
    cfg = plain_settings(checkpoint)
    release = find_teacher(cfg)
    assert (release.network, release.weights, release.origin) == ("mobilefacenet", checkpoint, str(checkpoint))
    cfg.pretrained_teacher_path = "nowhere"
    assert build_teacher(cfg, release)(IMAGE).shape == (1, 32)


def test_the_description_of_a_teacher_has_its_network_checksum_colours_and_origin(checkpoint):
    assert find_teacher(plain_settings(checkpoint)).describe() == {
        "network": "mobilefacenet",
        "sha256": hashlib.sha256(checkpoint.read_bytes()).hexdigest(),
        "colours": "RGB",
        "origin": str(checkpoint),
    }
    assert find_teacher(release_settings(checkpoint)).describe()["colours"] == "BGR"


def test_a_narrow_teacher_is_loaded_with_its_width_and_refused_with_another(tmp_path):
    path = tmp_path / "narrow.pth"
    torch.save(build_backbone(settings(embedding_size=32, width=0.25)).state_dict(), path)
    assert build_teacher(plain_settings(path, teacher_width=0.25))(IMAGE).shape == (1, 32)
    with pytest.raises(WeightsError, match=r"narrow\.pth.*different shapes.*teacher_width"):
        build_teacher(plain_settings(path))


def test_a_teacher_without_a_path_is_refused_if_its_embeddings_have_to_be_computed():
    with pytest.raises(WeightsError, match="pretrained_teacher_path"):
        build_teacher(plain_settings("", teacher_embeddings="absent.npy"))


@pytest.mark.parametrize("teacher", ["mobilefacenet", "iresnet18", "cvlface_ir18"])
def test_a_missing_file_is_refused_with_its_name(teacher, tmp_path):
    with pytest.raises(MissingWeights, match=r"absent\.pth: no such file.*pretrained_teacher_path"):
        build_teacher(plain_settings(tmp_path / "absent.pth", teacher=teacher))


@pytest.mark.parametrize("teacher", ["iresnet18", "cvlface_ir18"])
def test_a_file_of_another_network_is_refused_with_its_name(teacher, checkpoint):
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*missing keys.*unexpected keys.*weights of {teacher}"):
        build_teacher(plain_settings(checkpoint, teacher=teacher))


def test_a_teacher_of_another_embedding_size_is_refused_with_the_size_to_set(checkpoint):
    with pytest.raises(WeightsError, match=r"checkpoint\.pth.* 32 dimensions.* 64; set embedding_size=32$"):
        build_teacher(plain_settings(checkpoint, embedding_size=64))


KEY = "conv_6_sep.conv.weight"  # [512, 128, 1, 1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop(KEY), rf"missing keys: 1 \({KEY}\)"),
        (lambda state: state.update({"one.more": torch.zeros(2)}), r"unexpected keys: 1 \(one\.more\)"),
        (
            lambda state: state.update({KEY: torch.zeros(512, 64, 1, 1)}),
            rf"{KEY} is \[512, 64, 1, 1\], but .*512, 128",
        ),
        (lambda state: state[KEY].view(-1)[7].fill_(torch.nan), rf"not finite \({KEY}\)"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_with_the_key(checkpoint, change, message):
    state = torch.load(checkpoint, weights_only=True)
    change(state)
    torch.save(state, checkpoint)
    with pytest.raises(WeightsError, match=rf"checkpoint\.pth.*{message}"):
        build_teacher(plain_settings(checkpoint))


@pytest.mark.parametrize(
    "content", ["text", "empty", "truncated", "list", "nested", "no tensors", "code", "text in safetensors"]
)
def test_a_file_that_is_not_a_checkpoint_is_refused_and_never_executed(content, checkpoint, tmp_path):
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
