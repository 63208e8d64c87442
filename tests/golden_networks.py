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
CVLFACE_VIT = ["cvlface_vit_small", "cvlface_vit_base", "cvlface_vit_base_kprpe"]
LANDMARK_NETWORK = "cvlface_dfa_mobilenet"


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


def load_golden_weights(network: torch.nn.Module, name: str) -> None:
    """Give a network the golden weights. It must have exactly their keys, and may be on the device "meta"."""
    weights = {key.removeprefix("model.net."): value for key, value in golden_weights(name).items()}
    network.load_state_dict(weights, assign=True)


def golden_case(name: str) -> tuple[torch.Tensor, np.ndarray]:
    """Images [2, 3, 112, 112] in float64 and their golden embeddings [2, 512]; for the landmark network, [2, 5, 2]."""
    family = "cvlface_ir" if name in CVLFACE else "cvlface_vit" if name.startswith("cvlface") else "iresnet"
    arrays = np.load(GOLDEN / f"{family}_expected.npz")
    key = "dfa_landmarks" if name == LANDMARK_NETWORK else name.removeprefix("cvlface_")
    return torch.from_numpy(arrays["input"]).double(), arrays[key]


def golden_keypoints() -> torch.Tensor:
    """The key points [2, 5, 2], in float64, with which the golden embeddings of KP-RPE were made."""
    return torch.from_numpy(np.load(GOLDEN / "cvlface_vit_expected.npz")["keypoints"]).double()


@torch.no_grad()
def embed(network: torch.nn.Module, *inputs: torch.Tensor) -> np.ndarray:
    dtype = next(network.parameters()).dtype
    return network(*(values.to(dtype) for values in inputs)).numpy()


def assert_same(embeddings: np.ndarray, expected: np.ndarray, tolerance: float = 1e-6) -> None:
    assert embeddings.shape == expected.shape
    assert abs(embeddings - expected).max() < tolerance * abs(expected).max()


# --- CVLFace's releases ----------------------------------------------------------------------------------------

WEIGHTS, DESCRIPTION = "model.safetensors", "pretrained_model/model.yaml"


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    """The weights of the recipe, with the factors of tests/golden/README.md."""
    weights = {key: recipe(key, shape) for key, shape in golden_keys(name).items()}
    for key, value in weights.items():
        if key.endswith("keypoint_linear.weight"):
            value *= 10
        elif name == LANDMARK_NETWORK and value.dim() == 4:
            value *= 2.5
    return weights


def described(name: str, color_space: str = "RGB") -> str:
    """The model.yaml of a release. CVLFace calls vit_base "base", and shows KP-RPE by an entry of its own."""
    rpe = "rpe_config:\n  name: KPRPE_shared\n  num_keypoints: 5\n" if name.endswith("_kprpe") else ""
    name = name.removeprefix("vit_").removesuffix("_kprpe")
    return f"name: {name}\ninput_size: [3, 112, 112]\ncolor_space: {color_space}\noutput_dim: 512\n{rpe}"


def release_settings(path: str | os.PathLike = "", **changes) -> EasyDict:
    return settings(**{"teacher": "cvlface_ir18", "pretrained_teacher_path": path, **changes})
