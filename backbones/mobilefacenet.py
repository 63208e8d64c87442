"""MobileFaceNet (Chen, Liu, Gao, Han, CCBR 2018) with the key names of published AdaDistill checkpoints."""

from collections.abc import Callable
from functools import partial

from easydict import EasyDict
from torch import Tensor, nn

from backbones.iresnet import SqueezeExcitation
from backbones.loading import KeyNames
from backbones.mobilefacenet_names import FOLDED, OTHER_NAMES, fold

SLOPE = 0.25  # of LeakyReLU; PReLU starts with it
# `activation`: functions that make the layer for a number of channels.
ACTIVATIONS: dict[str, Callable[[int], nn.Module]] = {
    "prelu": nn.PReLU,
    "relu": lambda channels: nn.ReLU(inplace=True),
    "leaky_relu": lambda channels: nn.LeakyReLU(SLOPE, inplace=True),
}


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, and an activation unless it is None. Published key names call the activation prelu."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1,
        activation: str | None = "prelu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = ACTIVATIONS[activation](outputs) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 convolution to `groups` channels, depthwise 3x3, 1x1 to `outputs`; plus the input if `residual`.

    se: apply squeeze-and-excitation before the input is added, as in Block of iresnet.py.
    """

    def __init__(
        self, inputs: int, outputs: int, groups: int, stride: int = 1, residual: bool = False, se: bool = False,
        activation: str = "prelu",
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = ConvBlock(inputs, groups, activation=activation)
        self.conv_dw = ConvBlock(groups, groups, 3, stride, 1, groups=groups, activation=activation)
        self.project = ConvBlock(groups, outputs, activation=None)
        self.se_block = SqueezeExcitation(outputs) if se else nn.Identity()
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.se_block(self.project(self.conv_dw(self.conv(x))))
        return x + y if self.residual else y


class Stage(nn.Module):
    """`blocks` residual bottlenecks of the same shape."""

    def __init__(self, channels: int, blocks: int, groups: int, se: bool, activation: str) -> None:
        super().__init__()
        self.model = nn.Sequential(
            *(Bottleneck(channels, channels, groups, 1, True, se, activation) for _ in range(blocks))
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class GDC(nn.Module):
    """Global depthwise convolution over the map, then a linear layer and BatchNorm without affine weights.

    size: pixels per side of the map.
    """

    def __init__(self, channels: int, embedding_size: int, size: int = 7) -> None:
        super().__init__()
        self.conv_6_dw = ConvBlock(channels, channels, size, groups=channels, activation=None)
        self.linear = nn.Linear(channels, embedding_size, bias=False)
        self.bn = nn.BatchNorm1d(embedding_size, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(self.conv_6_dw(x).flatten(1)))


class MobileFaceNet(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size].

    width: multiplier of channels; se: use squeeze-and-excitation; activation: a name in ACTIVATIONS.
    """

    key_names = KeyNames(OTHER_NAMES, FOLDED, fold)

    def __init__(
        self, embedding_size: int = 512, width: float = 1.0, blocks: tuple[int, int, int] = (4, 6, 2),
        se: bool = False, activation: str = "prelu",
    ) -> None:  # fmt: skip
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        c64, c128, c256, c512 = map(scaled, (64, 128, 256, 512))
        conv = partial(ConvBlock, activation=activation)
        bottleneck = partial(Bottleneck, stride=2, se=se, activation=activation)
        stage = partial(Stage, se=se, activation=activation)
        self.conv1 = conv(3, c64, 3, 2, 1)
        self.conv2_dw = conv(c64, c64, 3, 1, 1, groups=c64)
        self.conv_23 = bottleneck(c64, c64, c128)
        self.conv_3 = stage(c64, blocks[0], c128)
        self.conv_34 = bottleneck(c64, c128, c256)
        self.conv_4 = stage(c128, blocks[1], c256)
        self.conv_45 = bottleneck(c128, c128, c512)
        self.conv_5 = stage(c128, blocks[2], c256)
        self.conv_6_sep = conv(c128, c512)
        self.output_layer = GDC(c512, embedding_size)
        self.apply(initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2_dw(self.conv1(x))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        return self.output_layer(self.conv_6_sep(x))


def build(cfg: EasyDict) -> MobileFaceNet:
    """Build the network cfg.network."""
    return MobileFaceNet(cfg.embedding_size, cfg.width, se=cfg.SE, activation=cfg.activation)


def initialise(module: nn.Module) -> None:
    """Draw the initial weights of a layer, for nn.Module.apply."""
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
