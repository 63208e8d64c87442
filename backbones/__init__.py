"""Networks: a table from name to builder, build_backbone(cfg) for the student, build_teacher(cfg) for the teacher."""

from collections.abc import Callable
from functools import partial

from easydict import EasyDict
from torch import nn

from backbones import cvlface_ir, iresnet
from backbones.cvlface_ir import CVLFaceIR
from backbones.iresnet import IResNet
from backbones.mobilefacenet import MobileFaceNet
from backbones.teacher import load_cvlface, load_plain
from utils.weights import load_strictly, read_state_dict


def _mobilefacenet(cfg: EasyDict) -> nn.Module:
    return MobileFaceNet(cfg.embedding_size, cfg.width)


def _iresnet(name: str, cfg: EasyDict) -> nn.Module:
    return IResNet(iresnet.BLOCKS[name], cfg.embedding_size, cfg.SE)


def _cvlface_ir(name: str, cfg: EasyDict) -> nn.Module:
    return CVLFaceIR(cvlface_ir.BLOCKS[name], cfg.embedding_size)


NETWORKS: dict[str, Callable[[EasyDict], nn.Module]] = {
    "mobilefacenet": _mobilefacenet,
    **{name: partial(_iresnet, name) for name in iresnet.BLOCKS},
    **{name: partial(_cvlface_ir, name) for name in cvlface_ir.BLOCKS},
}

# A teacher is a network of the table, and the function that fetches its weights.
TEACHERS: dict[str, Callable[[nn.Module, EasyDict], None]] = {
    "mobilefacenet": load_plain,
    **dict.fromkeys(iresnet.BLOCKS, load_plain),
    **dict.fromkeys(cvlface_ir.BLOCKS, load_cvlface),
}


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


def build_teacher(cfg: EasyDict) -> nn.Module:
    """The frozen teacher in eval mode, of the same signature as the student. Raises WeightsError, never random."""
    network = NETWORKS[cfg.teacher](EasyDict(cfg, width=cfg.teacher_width, SE=False))
    TEACHERS[cfg.teacher](network, cfg)
    return network.eval().requires_grad_(False)
