"""Golden networks (key names, weights, embeddings), and functions that compare a network with them."""

import json
import os
import zlib
from pathlib import Path

import numpy as np
import torch
from easydict import EasyDict

from config import load_config

GOLDEN = Path(__file__).parent / "golden"
CVLFACE = ["cvlface_ir18", "cvlface_ir50", "cvlface_ir101"]


def settings(**changes) -> EasyDict:
    return load_config(overrides=[f"{key}={value}" for key, value in changes.items()])


def golden_keys(name: str) -> dict[str, list[int]]:
    """Key names and shapes of the published files. Those of CVLFace start with model.net."""
    return json.loads((GOLDEN / f"{name}_keys.json").read_text())


def recipe(key: str, shape: list[int]) -> torch.Tensor:
    """The values that tests/golden/README.md defines for a tensor with this name and shape."""
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
    """Images [2, 3, 112, 112] and their golden embeddings [2, 512], in float64."""
    family = "cvlface_ir" if name.startswith("cvlface") else "iresnet"
    arrays = np.load(GOLDEN / f"{family}_expected.npz")
    return torch.from_numpy(arrays["input"]).double(), arrays[name.removeprefix("cvlface_")]


@torch.no_grad()
def embed(network: torch.nn.Module, images: torch.Tensor) -> np.ndarray:
    return network(images.to(next(network.parameters()).dtype)).numpy()


def assert_same(embeddings: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert embeddings.shape == expected.shape
    assert abs(embeddings - expected).max() < tolerance * abs(expected).max()


# --- CVLFace's releases ----------------------------------------------------------------------------------------

WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    return {key: recipe(key, shape) for key, shape in golden_keys(name).items()}


def described(name: str, color_space: str = "RGB") -> str:
    return f"name: {name}\ninput_size: [3, 112, 112]\ncolor_space: {color_space}\noutput_dim: 512\n"


def release_settings(path: str | os.PathLike = "", **changes) -> EasyDict:
    return settings(**{"teacher": "cvlface_ir18", "pretrained_teacher_path": path, **changes})
