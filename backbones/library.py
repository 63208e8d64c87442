"""Networks of torchvision and timm as students: their layers up to the last map, then the head of MobileFaceNet.

These networks are made for images of 224 x 224 pixels, of which most leave a map of 7 x 7. So that faces of half that
size leave it too, the first convolution with a stride gets half of its stride.
"""

from collections import OrderedDict
from itertools import takewhile

import torch
from easydict import EasyDict
from torch import Tensor, nn

from backbones.mobilefacenet import GDC, initialise
from utils.errors import InputError

_HEADS = ("avgpool", "classifier", "fc")  # where a network of torchvision ends to be a function of the map


class LibraryNetwork(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size].

    features: images -> maps [B, C, H, W]; name: for errors. Raises InputError if no square map comes out.
    """

    def __init__(self, features: nn.Module, embedding_size: int, name: str) -> None:
        super().__init__()
        channels, size = _map_shape(features, name)
        if size < 7:
            _halve_first_stride(features)
            channels, size = _map_shape(features, name)
        self.features = features
        self.output_layer = GDC(channels, embedding_size, size)
        self.output_layer.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.output_layer(self.features(x))


class _LastOf(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[-1]


def _torchvision_features(name: str) -> nn.Module:
    from torchvision.models import DenseNet, get_model  # here, because it takes a second

    network = get_model(name, weights=None)
    children = [child for child in network.named_children() if not child[0].lower().startswith("aux")]
    layers = OrderedDict(takewhile(lambda child: child[0] not in _HEADS, children))
    if isinstance(network, DenseNet):
        layers["relu"] = nn.ReLU()  # the only network whose forward pass has a layer of its own before the head
    return nn.Sequential(layers)


def _timm_features(name: str) -> nn.Module:
    from timm import create_model  # here, because it is not needed for other networks

    network = create_model(name, features_only=True, out_indices=(-1,))
    return nn.Sequential(OrderedDict(network=network, last=_LastOf()))


_FEATURES = {"torchvision": _torchvision_features, "timm": _timm_features}


def build(cfg: EasyDict) -> LibraryNetwork:
    """Build the network cfg.network, LIBRARY/NAME. Raises InputError if it leaves no square map."""
    library, _, name = cfg.network.partition("/")
    try:
        features = _FEATURES[library](name)
    except Exception as error:  # timm has several for networks that are no feature networks
        raise _unusable(cfg.network, str(error)) from error
    return LibraryNetwork(features, cfg.embedding_size, cfg.network)


@torch.no_grad()
def _map_shape(features: nn.Module, name: str) -> tuple[int, int]:
    """The channels and the side of the map that one image leaves."""
    try:
        shape = list(features.eval()(torch.zeros(1, 3, 112, 112)).shape)
    except Exception as error:  # whatever the network raises if it does not take images of this size
        raise _unusable(name, str(error)) from error
    features.train()
    if len(shape) != 4 or shape[2] != shape[3]:
        raise _unusable(name, f"an image gives {shape}, expected [1, channels, side, side]")
    return shape[1], shape[2]


def _halve_first_stride(features: nn.Module) -> None:
    """Halve the stride of the first convolution that has one, and pad such that its output becomes twice as large."""
    for layer in features.modules():
        if isinstance(layer, nn.Conv2d) and layer.stride[0] > 1:
            layer.stride = tuple(stride // 2 for stride in layer.stride)
            sizes = zip(layer.kernel_size, layer.stride, strict=True)
            layer.padding = tuple((kernel - stride + 1) // 2 for kernel, stride in sizes)
            return


def _unusable(name: str, reason: str) -> InputError:
    lines = reason.splitlines() or ["no reason given"]
    return InputError(
        f"network = {name!r}: leaves no map for images of 112 x 112 pixels ({lines[0]}); choose another network"
    )
