"""MobileFaceNet (Chen, Liu, Gao, Han, CCBR 2018) with the key names of published AdaDistill checkpoints."""

from easydict import EasyDict
from torch import Tensor, nn

from backbones.loading import KeyNames
from backbones.mobilefacenet_names import FOLDED, OTHER_NAMES, fold


class ConvBlock(nn.Module):
    """Convolution, BatchNorm, and a PReLU if `activation`."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, padding: int = 0, groups: int = 1,
        activation: bool = True,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs) if activation else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.prelu(self.bn(self.conv(x)))


class Bottleneck(nn.Module):
    """1x1 convolution to `groups` channels, depthwise 3x3, 1x1 to `outputs`; plus the input if `residual`."""

    def __init__(self, inputs: int, outputs: int, groups: int, stride: int = 1, residual: bool = False) -> None:
        super().__init__()
        self.conv = ConvBlock(inputs, groups)
        self.conv_dw = ConvBlock(groups, groups, 3, stride, 1, groups=groups)
        self.project = ConvBlock(groups, outputs, activation=False)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        y = self.project(self.conv_dw(self.conv(x)))
        return x + y if self.residual else y


class Stage(nn.Module):
    """`blocks` residual bottlenecks of the same shape."""

    def __init__(self, channels: int, blocks: int, groups: int) -> None:
        super().__init__()
        self.model = nn.Sequential(*(Bottleneck(channels, channels, groups, residual=True) for _ in range(blocks)))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class GDC(nn.Module):
    """Global depthwise convolution over the 7x7 map, then a linear layer and BatchNorm without affine weights."""

    def __init__(self, channels: int, embedding_size: int) -> None:
        super().__init__()
        self.conv_6_dw = ConvBlock(channels, channels, 7, groups=channels, activation=False)
        self.linear = nn.Linear(channels, embedding_size, bias=False)
        self.bn = nn.BatchNorm1d(embedding_size, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.linear(self.conv_6_dw(x).flatten(1)))


class MobileFaceNet(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size]; width: multiplier of channels."""

    key_names = KeyNames(OTHER_NAMES, FOLDED, fold)

    def __init__(self, embedding_size: int = 512, width: float = 1.0, blocks: tuple[int, int, int] = (4, 6, 2)) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return max(8, round(channels * width / 8) * 8)

        c64, c128, c256, c512 = map(scaled, (64, 128, 256, 512))
        self.conv1 = ConvBlock(3, c64, 3, 2, 1)
        self.conv2_dw = ConvBlock(c64, c64, 3, 1, 1, groups=c64)
        self.conv_23 = Bottleneck(c64, c64, c128, stride=2)
        self.conv_3 = Stage(c64, blocks[0], c128)
        self.conv_34 = Bottleneck(c64, c128, c256, stride=2)
        self.conv_4 = Stage(c128, blocks[1], c256)
        self.conv_45 = Bottleneck(c128, c128, c512, stride=2)
        self.conv_5 = Stage(c128, blocks[2], c256)
        self.conv_6_sep = ConvBlock(c128, c512)
        self.output_layer = GDC(c512, embedding_size)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2_dw(self.conv1(x))
        x = self.conv_3(self.conv_23(x))
        x = self.conv_4(self.conv_34(x))
        x = self.conv_5(self.conv_45(x))
        return self.output_layer(self.conv_6_sep(x))


def build(cfg: EasyDict) -> MobileFaceNet:
    """Build the network cfg.network."""
    return MobileFaceNet(cfg.embedding_size, cfg.width)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
