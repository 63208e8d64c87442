"""Networks: a table from name to builder, build_backbone(cfg) for the student, build_teacher(cfg) for the teacher."""

from collections.abc import Callable

import torch
from easydict import EasyDict
from torch import nn

from backbones.teacher import Release, load
from config import names
from utils.weights import load_strictly, read_state_dict

NETWORKS: dict[str, Callable[[EasyDict], nn.Module]] = names.resolve(names.NETWORKS)
TEACHERS: dict[str, Callable[[EasyDict], Release]] = names.resolve(names.TEACHERS)


def build_backbone(cfg: EasyDict) -> nn.Module:
    """The student: [B, 3, 112, 112] float RGB in [-1, 1] -> [B, cfg.embedding_size] raw embeddings.

    Starts from the weights of `cfg.init_from` where that is set. Raises WeightsError where they do not fit.
    """
    network = NETWORKS[cfg.network](cfg)
    if cfg.init_from:
        hint = (
            f"network = {cfg.network!r}, embedding_size = {cfg.embedding_size} and width = {cfg.width} must be its own"
        )
        load_strictly(network, read_state_dict(cfg.init_from), cfg.init_from, hint)
    return network


def find_teacher(cfg: EasyDict) -> Release:
    """Where the teacher's weights lie and what they are, fetched if need be. Raises WeightsError."""
    return TEACHERS[cfg.teacher](cfg)


def build_teacher(cfg: EasyDict, release: Release | None = None) -> nn.Module:
    """The frozen teacher in eval mode, of the same signature as the student, from `release` where it was found before.

    Raises WeightsError; the teacher is never random.
    """
    release = release or find_teacher(cfg)
    with torch.device("meta"):  # no random weights to be thrown away, and no random number drawn
        network = NETWORKS[release.network](EasyDict(cfg, network=release.network, width=cfg.teacher_width, SE=False))
    network.to_empty(device="cpu")
    load(network, release, cfg)
    return network.eval().requires_grad_(False)
