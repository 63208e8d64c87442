"""The IR networks of CVLFace and AdaFace (from Deng et al., ArcFace, CVPR 2019), with the key names of the releases."""

from easydict import EasyDict
from torch import Tensor, nn

BLOCKS = {"cvlface_ir18": (2, 2, 2, 2), "cvlface_ir50": (3, 4, 14, 3), "cvlface_ir101": (3, 13, 30, 3)}


class IRBlock(nn.Module):
    """BatchNorm, 3x3 convolution, BatchNorm, PReLU, 3x3 convolution with the stride, BatchNorm; plus a shortcut.

    The shortcut subsamples the input, or projects it if the number of channels changes.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        if inputs == outputs:
            self.shortcut_layer: nn.Module = nn.MaxPool2d(1, stride)
        else:
            self.shortcut_layer = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)
            )
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(inputs),
            nn.Conv2d(inputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.PReLU(outputs),
            nn.Conv2d(outputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.res_layer(x) + self.shortcut_layer(x)


class CVLFaceIR(nn.Module):
    """RGB images [B, 3, 112, 112] in [-1, 1] -> raw embeddings [B, embedding_size].

    bgr: whether the weights were trained on BGR images. If so, the network first reverses the channels.
    """

    def __init__(self, blocks: tuple[int, int, int, int], embedding_size: int = 512, bgr: bool = False) -> None:
        super().__init__()
        self.bgr = bgr
        self.input_layer = nn.Sequential(nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.PReLU(64))
        body, channels = [], 64
        for outputs, count in zip((64, 128, 256, 512), blocks, strict=True):
            body += [IRBlock(channels, outputs, 2), *(IRBlock(outputs, outputs, 1) for _ in range(count - 1))]
            channels = outputs
        self.body = nn.Sequential(*body)
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(512),
            nn.Dropout(0.4),
            nn.Flatten(),
            nn.Linear(512 * 7 * 7, embedding_size),
            nn.BatchNorm1d(embedding_size, affine=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.bgr:
            x = x.flip(1)
        return self.output_layer(self.body(self.input_layer(x)))


def build(cfg: EasyDict) -> CVLFaceIR:
    """Build the network cfg.network."""
    return CVLFaceIR(BLOCKS[cfg.network], cfg.embedding_size)
