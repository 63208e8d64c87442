"""CVLFace's landmark network (DFA MobileNet), with the key names of its release.

RetinaFace (Deng, Guo, Ververas, Kotsia, Zafeiriou, CVPR 2020) on MobileNet with a quarter of the channels; MLP-Mixer
blocks combine the predictions of all anchors to those of the one face (Kim, Su, Liu, Jain, Liu, CVPR 2024).
"""

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

SIZE = 160  # pixels of the side of the image that the network sees
ANCHORS = {8: (64, 80), 16: (96, 112), 32: (128, 144)}  # stride in pixels -> sides of the anchors in each cell
COUNT = sum(len(sides) * (SIZE // stride) ** 2 for stride, sides in ANCHORS.items())
CENTER_VARIANCE, SIZE_VARIANCE = 0.1, 0.2
BOX, CLASSES, LANDMARKS = 4, 2, 10  # numbers that are predicted for an anchor
PREDICTIONS = BOX + CLASSES + LANDMARKS
CHANNELS = 64


def convolution(inputs: int, outputs: int, size: int = 3, stride: int = 1, activation: bool = True) -> nn.Sequential:
    """Convolution, BatchNorm and, if `activation`, LeakyReLU."""
    conv = nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), *([nn.LeakyReLU(0.1)] if activation else []))


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise 3x3 convolution and a 1x1 convolution, each with BatchNorm and LeakyReLU."""
    depthwise = nn.Conv2d(inputs, inputs, 3, stride, 1, groups=inputs, bias=False)
    return nn.Sequential(depthwise, nn.BatchNorm2d(inputs), nn.LeakyReLU(0.1), *convolution(inputs, outputs, 1))


class FeaturePyramid(nn.Module):
    """Feature maps of strides 8, 16 and 32 -> the same with CHANNELS channels, each with what the coarser ones see."""

    def __init__(self) -> None:
        super().__init__()
        self.output1, self.output2, self.output3 = (convolution(inputs, CHANNELS, 1) for inputs in (64, 128, 256))
        self.merge1, self.merge2 = convolution(CHANNELS, CHANNELS), convolution(CHANNELS, CHANNELS)

    def forward(self, fine: Tensor, middle: Tensor, coarse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        coarse = self.output3(coarse)
        middle = self.merge2(self.output2(middle) + F.interpolate(coarse, scale_factor=2.0))
        fine = self.merge1(self.output1(fine) + F.interpolate(middle, scale_factor=2.0))
        return fine, middle, coarse


class ContextModule(nn.Module):
    """Context of three sizes for each place (SSH; Najibi, Samangouei, Chellappa, Davis, ICCV 2017)."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter = CHANNELS // 2, CHANNELS // 4
        self.conv3X3 = convolution(CHANNELS, half, activation=False)
        self.conv5X5_1 = convolution(CHANNELS, quarter)
        self.conv5X5_2 = convolution(quarter, quarter, activation=False)
        self.conv7X7_2 = convolution(quarter, quarter)
        self.conv7x7_3 = convolution(quarter, quarter, activation=False)

    def forward(self, x: Tensor) -> Tensor:
        middle = self.conv5X5_1(x)
        return F.relu(torch.cat([self.conv3X3(x), self.conv5X5_2(middle), self.conv7x7_3(self.conv7X7_2(middle))], 1))


class Head(nn.Module):
    """Features [B, 64, H, W] -> `numbers` predictions for each of the two anchors of each cell [B, 2HW, numbers]."""

    def __init__(self, numbers: int) -> None:
        super().__init__()
        self.numbers = numbers
        self.conv1x1 = nn.Conv2d(CHANNELS, 2 * numbers, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1x1(x).permute(0, 2, 3, 1).flatten(1).unflatten(1, (-1, self.numbers))


class MixerBlock(nn.Module):
    """MLP over the anchors, then over the predictions, each added to its input (Tolstikhin et al., NeurIPS 2021)."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(PREDICTIONS, eps=1e-6)
        self.mlp_tokens = _mlp(COUNT, PREDICTIONS // 2)
        self.norm2 = nn.LayerNorm(PREDICTIONS, eps=1e-6)
        self.mlp_channels = _mlp(PREDICTIONS, PREDICTIONS * 4)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.mlp_tokens(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        return x + self.mlp_channels(self.norm2(x))


def _mlp(channels: int, hidden: int) -> nn.Sequential:
    layers = [("fc1", nn.Linear(channels, hidden)), ("act", nn.GELU()), ("fc2", nn.Linear(hidden, channels))]
    return nn.Sequential(OrderedDict(layers))


class LandmarkNetwork(nn.Module):
    """RGB images [B, 3, S, S] in [-1, 1] of one face each -> its five key points [B, 5, 2].

    They are x and y of the eyes, the nose and the corners of the mouth, from 0 to 1 over the image. Computed in
    float32, also within autocast, because small errors of the key points move the attention of all patches.
    """

    always_float32 = True

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.ModuleDict(
            {
                "stage1": nn.Sequential(
                    convolution(3, 8, stride=2), separable(8, 16), separable(16, 32, 2), separable(32, 32),
                    separable(32, 64, 2), separable(64, 64),
                ),
                "stage2": nn.Sequential(separable(64, 128, 2), *(separable(128, 128) for _ in range(5))),
                "stage3": nn.Sequential(separable(128, 256, 2), separable(256, 256)),
            }
        )  # fmt: skip
        self.fpn = FeaturePyramid()
        self.ssh1, self.ssh2, self.ssh3 = ContextModule(), ContextModule(), ContextModule()
        self.ClassHead, self.BboxHead, self.LandmarkHead = (
            nn.ModuleList(Head(numbers) for _ in ANCHORS) for numbers in (CLASSES, BOX, LANDMARKS)
        )
        self.aggregator = nn.Sequential(*(MixerBlock() for _ in range(3)), nn.Linear(PREDICTIONS, 1))
        self.register_buffer("anchors", _anchors(), persistent=False)  # [1050, 4]

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            prediction = self.predict(x.to(self.anchors.dtype))
        return prediction[:, BOX + CLASSES :].unflatten(1, (5, 2))

    def predict(self, x: Tensor) -> Tensor:
        """Two corners of the box, scores of "no face" and "face", and key points: [B, 16]."""
        x = F.interpolate(x, (SIZE, SIZE), mode="bilinear", align_corners=True).flip(1)  # it was trained on BGR
        fine = self.body["stage1"](x)
        middle = self.body["stage2"](fine)
        pyramid = self.fpn(fine, middle, self.body["stage3"](middle))
        features = [ssh(level) for ssh, level in zip((self.ssh1, self.ssh2, self.ssh3), pyramid, strict=True)]
        boxes, classes, landmarks = (
            torch.cat([head(level) for head, level in zip(heads, features, strict=True)], dim=1)  # [B, 1050, numbers]
            for heads in (self.BboxHead, self.ClassHead, self.LandmarkHead)
        )
        predictions = torch.cat([self._decoded_boxes(boxes), classes, self._decoded_landmarks(landmarks)], dim=2)
        weights = self.aggregator(predictions).softmax(dim=1)  # [B, 1050, 1]
        return (weights * predictions).sum(dim=1)

    def _decoded_boxes(self, boxes: Tensor) -> Tensor:
        """Offsets of center and size from the anchors -> corners in the image [B, 1050, 4]."""
        center, size = self.anchors.split(2, dim=1)
        center = center + boxes[..., :2] * CENTER_VARIANCE * size
        size = size * (boxes[..., 2:] * SIZE_VARIANCE).exp()
        return torch.cat([center - size / 2, center + size / 2], dim=2)

    def _decoded_landmarks(self, landmarks: Tensor) -> Tensor:
        """Offsets from the centers of the anchors -> places in the image [B, 1050, 10]."""
        center, size = self.anchors.repeat(1, 5).unflatten(1, (5, 4)).split(2, dim=2)  # [1050, 5, 2]
        return (center + landmarks.unflatten(2, (5, 2)) * CENTER_VARIANCE * size).flatten(2)


def _anchors() -> Tensor:
    """x and y of the center, width and height of each anchor, float32 [1050, 4], from 0 to 1 over the image."""
    boxes = []
    for stride, sides in ANCHORS.items():
        centers = [(cell + 0.5) * stride / SIZE for cell in range(SIZE // stride)]
        boxes += [(x, y, side / SIZE, side / SIZE) for y in centers for x in centers for side in sides]
    return torch.tensor(boxes, device="cpu")
