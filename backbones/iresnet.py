"""IResNet (Duta, Liu, Zhu, Shao, ICPR 2020) in InsightFace's version, with InsightFace's key names."""

from easydict import EasyDict
from torch import Tensor, nn

BLOCKS = {
    "iresnet18": (2, 2, 2, 2),
    "iresnet34": (3, 4, 6, 3),
    "iresnet50": (3, 4, 14, 3),
    "iresnet100": (3, 13, 30, 3),
}


class SqueezeExcitation(nn.Module):
    """Channel weights from channel means (Hu, Shen, Sun, CVPR 2018)."""

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        hidden = max(1, channels // reduction)
        self.fc1 = nn.Conv2d(channels, hidden, 1, bias=False)
        self.relu = nn.ReLU(inplace=True)
        self.fc2 = nn.Conv2d(hidden, channels, 1, bias=False)
        self.sigmoid = nn.Sigmoid()

    def forward(self, x: Tensor) -> Tensor:
        return x * self.sigmoid(self.fc2(self.relu(self.fc1(self.pool(x)))))


class Block(nn.Module):
    """BatchNorm, 3x3 convolution, BatchNorm, PReLU, 3x3 convolution with the stride, BatchNorm; plus the input.

    se: apply squeeze-and-excitation before the input is added.
    """

    def __init__(self, inputs: int, outputs: int, stride: int, se: bool) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.prelu = nn.PReLU(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.se_block = SqueezeExcitation(outputs) if se else nn.Identity()
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv1(self.bn1(x))
        y = self.conv2(self.prelu(self.bn2(y)))
        return self.se_block(self.bn3(y)) + self.downsample(x)


class IResNet(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size]; se: use squeeze-and-excitation."""

    def __init__(self, blocks: tuple[int, int, int, int], embedding_size: int = 512, se: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        self.prelu = nn.PReLU(64)
        channels = 64
        for number, (outputs, count) in enumerate(zip((64, 128, 256, 512), blocks, strict=True), start=1):
            layer = [Block(channels, outputs, 2, se), *(Block(outputs, outputs, 1, se) for _ in range(count - 1))]
            setattr(self, f"layer{number}", nn.Sequential(*layer))
            channels = outputs
        self.bn2 = nn.BatchNorm2d(512)
        self.fc = nn.Linear(512 * 7 * 7, embedding_size)
        self.features = nn.BatchNorm1d(embedding_size)
        nn.init.constant_(self.features.weight, 1.0)
        self.features.weight.requires_grad = False  # stays 1, so that the norm shows the image quality
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, 0.0, 0.1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.prelu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.features(self.fc(self.bn2(x).flatten(1)))


def build(cfg: EasyDict) -> IResNet:
    """Build the network cfg.network."""
    return IResNet(BLOCKS[cfg.network], cfg.embedding_size, cfg.SE)
