"""Helpers for the tests of teachers: settings, objects that run code when they are unpickled, and checks."""

import os
from pathlib import Path

import torch
from easydict import EasyDict
from golden_networks import DESCRIPTION, described, settings

from backbones import build_teacher

IMAGE = torch.zeros(1, 3, 112, 112)


class Malicious:
    """Creates a folder when a loader unpickles it without protection."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def plain_settings(path: str | os.PathLike, **changes) -> EasyDict:
    """Settings for a MobileFaceNet teacher with embeddings of 32 dimensions, whose weights are in the file `path`."""
    return settings(**{"teacher": "mobilefacenet", "embedding_size": 32, "pretrained_teacher_path": path, **changes})


def describe(folder: Path, name: str, color_space: str = "RGB") -> Path:
    """Write a release's model.yaml into the folder."""
    (folder / "pretrained_model").mkdir(exist_ok=True)
    (folder / DESCRIPTION).write_text(described(name, color_space))
    return folder


def assert_frozen(teacher: torch.nn.Module) -> None:
    assert not any(module.training for module in teacher.modules())
    assert not any(weight.requires_grad for weight in teacher.parameters())
    assert {weight.dtype for weight in teacher.parameters()} == {torch.float32}
    assert {value.device.type for value in [*teacher.parameters(), *teacher.buffers()]} == {"cpu"}
    assert {name for name, _ in teacher.named_buffers()} <= set(teacher.state_dict())  # all buffers were loaded


def assert_draws_no_random_numbers(cfg: EasyDict) -> None:
    before = torch.get_rng_state()
    build_teacher(cfg)
    assert torch.equal(torch.get_rng_state(), before)
