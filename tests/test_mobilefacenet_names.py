"""MobileFaceNets of other code bases: loaded where only names differ, else named as another network."""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from golden_networks import recipe, settings
from torch import Tensor

from backbones import build_backbone
from utils.weights import WeightsError


@dataclass
class OtherMobileFaceNet:
    """The forward pass of another code base, written with functions. Its weights are made when they are first used.

    stages: names of the ten stages, {} standing for the number of a block; parts: of a bottleneck; unit: of
    convolution, BatchNorm and PReLU; last: of the linear layer and the BatchNorm after it; scale: factor on the
    channels of the stages, but not on the groups; affine: whether the last BatchNorm has a scale and an offset.
    """

    stages: list[str]
    parts: list[str]
    unit: list[str]
    last: list[str]
    embedding_size: int = 24
    scale: int = 1
    affine: bool = True
    state: dict[str, Tensor] = field(default_factory=dict)

    def weight(self, key: str, *shape: int) -> Tensor:
        return self.state.setdefault(key, recipe(key, list(shape))).double()

    def normalise(self, x: Tensor, name: str, affine: bool = True) -> Tensor:
        size = x.shape[1]
        mean, variance = (self.weight(f"{name}.{key}", size) for key in ("running_mean", "running_var"))
        self.state.setdefault(f"{name}.num_batches_tracked", torch.tensor(7))
        shape = (1, size, *[1] * (x.ndim - 2))
        y = (x - mean.view(shape)) / (variance.view(shape) + 1e-5).sqrt()
        if affine:
            y = y * self.weight(f"{name}.weight", size).view(shape) + self.weight(f"{name}.bias", size).view(shape)
        return y

    def conv(self, x: Tensor, name: str, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1,
             activation: bool = True) -> Tensor:  # fmt: skip
        conv, norm, prelu = (f"{name}.{part}" for part in self.unit)
        weight = self.weight(f"{conv}.weight", outputs, x.shape[1] // groups, kernel, kernel)
        y = self.normalise(F.conv2d(x, weight, None, stride, kernel // 2 if kernel == 3 else 0, 1, groups), norm)
        return F.prelu(y, self.weight(f"{prelu}.weight", outputs)) if activation else y

    def bottleneck(self, x: Tensor, name: str, outputs: int, groups: int, stride: int) -> Tensor:
        first, depthwise, project = (f"{name}.{part}" for part in self.parts)
        y = self.conv(self.conv(x, first, groups), depthwise, groups, 3, stride, groups)
        y = self.conv(y, project, outputs, activation=False)
        return y if stride == 2 else x + y

    def blocks(self, x: Tensor, name: str, count: int, groups: int) -> Tensor:
        for number in range(count):
            x = self.bottleneck(x, name.format(number), x.shape[1], groups, 1)
        return x

    def __call__(self, x: Tensor) -> Tensor:
        s, names = self.scale, self.stages
        x = self.conv(x, names[0], 64 * s, 3, 2)
        x = self.conv(x, names[1], 64 * s, 3, 1, 64)
        x = self.blocks(self.bottleneck(x, names[2], 64 * s, 128, 2), names[3], 4, 128)
        x = self.blocks(self.bottleneck(x, names[4], 128 * s, 256, 2), names[5], 6, 256)
        x = self.blocks(self.bottleneck(x, names[6], 128 * s, 512, 2), names[7], 2, 256)
        x = self.conv(self.conv(x, names[8], 512), names[9], 512, 7, 1, 512, activation=False).flatten(1)
        x = F.linear(x, self.weight(f"{self.last[0]}.weight", self.embedding_size, 512))
        return self.normalise(x, self.last[1], self.affine)


def ours(**changes) -> OtherMobileFaceNet:
    stages = ["conv1", "conv2_dw", "conv_23", "conv_3.model.{}", "conv_34", "conv_4.model.{}", "conv_45",
              "conv_5.model.{}", "conv_6_sep", "output_layer.conv_6_dw"]  # fmt: skip
    last = ["output_layer.linear", "output_layer.bn"]
    return OtherMobileFaceNet(stages, ["conv", "conv_dw", "project"], ["conv", "bn", "prelu"], last, **changes)


def treb1en(**changes) -> OtherMobileFaceNet:
    same = ours(**changes)
    return OtherMobileFaceNet([*same.stages[:-1], "conv_6_dw"], same.parts, same.unit, ["linear", "bn"], **changes)


def arcface_torch(**changes) -> OtherMobileFaceNet:
    inner = ["layers.0", "layers.1", "layers.2"]
    stages = ["layers.0", "layers.1", "layers.2", "layers.3.layers.{}", "layers.4", "layers.5.layers.{}", "layers.6",
              "layers.7.layers.{}", "conv_sep", "features.layers.0"]  # fmt: skip
    return OtherMobileFaceNet(stages, inner, inner, ["features.layers.2", "features.layers.3"], **changes)


IMAGES = 2 * torch.rand(2, 3, 112, 112, generator=torch.Generator().manual_seed(0), dtype=torch.float64) - 1


@pytest.mark.parametrize("prefix", ["", "backbone."])
@pytest.mark.parametrize(
    ("make", "said"),
    [
        (ours, "scale and offset"),
        (lambda: ours(affine=False), "tensors"),
        (treb1en, "key names of InsightFace_Pytorch (TreB1eN); scale and offset"),
        (arcface_torch, "key names of arcface_torch; scale and offset"),
    ],
    ids=["affine", "ours", "TreB1eN", "arcface_torch"],
)
def test_where_only_names_differ_the_network_gives_the_embeddings_of_the_other_code_base(make, said, prefix, tmp_path):
    other = make()
    expected = other(IMAGES)
    scale = f"{other.last[1]}.weight"
    if scale in other.state:
        other.state[scale][:2] = torch.tensor([-0.7, 0.0])  # an embedding must not depend on the sign of the scale
        expected = other(IMAGES)
    torch.save({"state_dict": {prefix + key: value for key, value in other.state.items()}}, tmp_path / "other.pth")
    network = build_backbone(settings(embedding_size=24, init_from=tmp_path / "other.pth")).eval()
    assert said in network.loaded
    with torch.no_grad():
        embeddings = network.double()(IMAGES)
    assert (embeddings - expected).abs().max() < 1e-6 * expected.abs().max()
    assert all(value == 7 for key, value in network.state_dict().items() if key.endswith("num_batches_tracked"))


def some(*keys: str) -> Callable[[], dict[str, Tensor]]:
    return lambda: {key: torch.ones(64) for key in keys}


def mbf() -> dict[str, Tensor]:
    other = arcface_torch(scale=2)
    other(IMAGES[:1])
    return other.state


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (mbf, r"arcface_torch's MobileFaceNet"),
        (
            some("layers.1.layers.0.layers.0.layers.0.weight", "conv_sep.layers.0.weight"),
            "arcface_torch's",
        ),  # mbf_large
        (some("conv1.0.weight", "dw_conv.depthwise.weight", "features.0.conv.0.0.weight", "bn.weight"), "foamliu's"),
        (
            some("conv1.conv.weight", "dw_conv1.conv.weight", "blocks.0.conv.0.weight", "linear7.conv.weight"),
            "Xiaoccer's",
        ),
    ],
    ids=["mbf", "mbf_large", "foamliu", "Xiaoccer"],
)
@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_of_another_mobilefacenet_is_named_and_not_called_a_wrong_width(make, name, prefix, tmp_path):
    torch.save({prefix + key: value for key, value in make().items()}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=rf"other\.pth: weights of another network, {name}.*(mbf_large have|no width makes it fit)"
    ):
        build_backbone(settings(embedding_size=24, init_from=tmp_path / "other.pth"))


def test_a_mobilefacenet_with_more_blocks_is_not_called_a_wrong_width(tmp_path):
    state = build_backbone(settings(embedding_size=24)).state_dict()
    more = {key.replace("model.3", "model.4"): value for key, value in state.items() if "conv_3.model.3" in key}
    torch.save({**state, **more}, tmp_path / "other.pth")
    with pytest.raises(
        WeightsError, match=r"unexpected keys: \d+ \(conv_3\.model\.4.*another network.*the width does not"
    ):
        build_backbone(settings(embedding_size=24, init_from=tmp_path / "other.pth"))


@pytest.mark.parametrize("missing", ["weight", "bias"])
def test_half_of_the_last_scale_and_offset_is_refused(missing, tmp_path):
    other = treb1en()
    other(IMAGES[:1])
    del other.state[f"bn.{missing}"]
    torch.save(other.state, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=rf"missing keys: 1 \(output_layer\.bn\.{missing}\)"):
        build_backbone(settings(embedding_size=24, init_from=tmp_path / "other.pth"))
