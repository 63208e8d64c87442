"""Networks from images to embeddings: build_backbone(cfg) for the student, build_teacher(cfg) for the teacher."""

from collections.abc import Callable

import torch
from easydict import EasyDict
from torch import nn

from backbones.cvlface_landmarks import LandmarkNetwork
from backbones.loading import embedding_size_of, load_weights
from backbones.model_folder import SETTINGS, find_model, is_model
from backbones.onnx_teacher import OnnxNetwork
from backbones.teacher import Release, find_landmarks, load
from config import names

NETWORKS: dict[str, Callable[[EasyDict], nn.Module]] = names.resolve(names.NETWORKS | names.TEACHER_NETWORKS)
STUDENTS = names.resolve(names.NETWORKS | names.LIBRARIES)
TEACHERS: dict[str, Callable[[EasyDict], Release]] = names.resolve(names.TEACHERS)


def build_backbone(cfg: EasyDict, new_last_layer: bool = False) -> nn.Module:
    """The student: float RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, cfg.embedding_size].

    It is in training mode: call .eval() before you embed images. If `cfg.init_from` is set, it has the weights in that
    file, folder or repository, and `network.loaded` says how they were read. Raises WeightsError if they do not fit.

    new_last_layer: for a network that is then trained: if the embeddings of the file only have another size, its last
    layer is left out. Networks of a library need it installed, and images that leave a square map: else InputError.
    """
    network = STUDENTS[cfg.network.partition("/")[0]](cfg)  # of LIBRARY/NAME, the library
    if cfg.init_from:
        hint = (
            f"Use weights of network = {cfg.network!r} with embedding_size = {cfg.embedding_size}, "
            f"width = {cfg.width}, SE = {cfg.SE} and activation = {cfg.activation!r}"
        )
        model = find_model(cfg.init_from) if is_model(cfg.init_from) else None
        if model:
            kept = [key for key in SETTINGS if not (new_last_layer and key == "embedding_size")]
            model.require({key: (key, cfg[key]) for key in kept})
        load_weights(network, model.weights if model else cfg.init_from, hint, new_last_layer)
        if model and model.origin != cfg.init_from:
            network.loaded = f"{model.origin}: {network.loaded}"
    return network


def find_teacher(cfg: EasyDict) -> Release:
    """Find the teacher's weights, and download them if they are not on this machine. Raises WeightsError."""
    return TEACHERS[cfg.teacher](cfg)


def build_teacher(cfg: EasyDict, release: Release | None = None) -> nn.Module:
    """The frozen teacher, in eval mode. Its inputs and outputs are as those of the student.

    release: what find_teacher(cfg) returned; None: call it here. `teacher.loaded` says how the weights were read. A
    teacher never has random weights: raises WeightsError if they are missing or do not fit. For the network of an ONNX
    file, `loaded` says what it takes and gives.
    """
    release = release or find_teacher(cfg)
    if release.network == "onnx":
        return OnnxNetwork(release, cfg.embedding_size).eval()
    network = _without_weights(lambda: _build_network(cfg, release))
    load(network, release, cfg.teacher_width)
    if release.landmarks:
        network.landmark_network = _load_landmark_network(release.landmarks)
        network.loaded += f"; key points by {release.landmarks.origin}: {network.landmark_network.loaded}"
    return network.eval().requires_grad_(False)


def build_landmark_network(cfg: EasyDict) -> LandmarkNetwork:
    """CVLFace's landmark network, frozen, in eval mode, with the weights that `landmarks_path` or `landmarks_repo_id`
    names. Raises WeightsError."""
    return _load_landmark_network(find_landmarks(cfg)).eval().requires_grad_(False)


def _load_landmark_network(release: Release) -> LandmarkNetwork:
    network = _without_weights(LandmarkNetwork)
    load(network, release, width=1.0)
    return network


def teacher_embedding_size(cfg: EasyDict, release: Release) -> int:
    """The size of the teacher's embeddings, from its weights file; cfg.embedding_size if they fit no size."""
    if release.network == "onnx":
        return OnnxNetwork(release).embedding_size
    with torch.device("meta"):
        network = _build_network(cfg, release)
    return embedding_size_of(network, release.weights) or cfg.embedding_size


def _build_network(cfg: EasyDict, release: Release) -> nn.Module:
    settings = EasyDict(cfg, network=release.network, width=cfg.teacher_width, **release.settings)
    return NETWORKS[release.network](settings)


def _without_weights(build: Callable[[], nn.Module]) -> nn.Module:
    """A network that draws no random numbers: its weights are still undefined, its constant buffers are not.

    Such buffers are not in the state dict. They name the device "cpu".
    """
    with torch.device("meta"):
        network = build()
    constants = {name: buffer for name, buffer in network.named_buffers() if not buffer.is_meta}
    network.to_empty(device="cpu")
    for name, buffer in network.named_buffers():
        if name in constants:
            buffer.copy_(constants[name])
    return network
