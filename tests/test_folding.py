"""Folding of BatchNorm into the layer before it: the same embeddings, and no BatchNorm where it is exact."""

import copy

import pytest
import torch
from golden_networks import recipe, settings
from torch import nn

from backbones import NETWORKS
from backbones.folding import fold_batch_norm


def network_with_weights(name: str, **changes) -> nn.Module:
    """A network in eval mode whose BatchNorms have other means, variances and weights than at first."""
    network = NETWORKS[name](settings(network=name, **changes))
    network.load_state_dict({key: recipe(key, list(value.shape)) for key, value in network.state_dict().items()})
    return network.eval()


def names_of_norms(network: nn.Module) -> set[str]:
    return {name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d)}


def relative_change(network: nn.Module, folded: nn.Module, x: torch.Tensor) -> float:
    with torch.no_grad():
        expected, found = network(x), folded(x)
    return ((found - expected).abs().max() / expected.abs().max()).item()


BLOCKS = [f"layer{stage}.{block}" for stage in (1, 2, 3, 4) for block in (0, 1)]
STAY = {  # the BatchNorms before a convolution with zero padding, and the one before the linear layer
    "mobilefacenet": set(),
    "iresnet18": {*(f"{block}.bn1" for block in BLOCKS), "bn2"},
    "cvlface_ir18": {*(f"body.{block}.res_layer.0" for block in range(8)), "output_layer.0"},
}


@pytest.mark.parametrize(
    ("name", "changes"),
    [("mobilefacenet", {}), ("iresnet18", {}), ("iresnet18", {"SE": True}), ("cvlface_ir18", {})],
)
def test_a_network_without_its_foldable_norms_gives_the_same_embeddings(name, changes):
    network = network_with_weights(name, **changes)
    x = torch.rand(1, 3, 112, 112, generator=torch.Generator().manual_seed(0)) * 2 - 1
    folded = copy.deepcopy(network)
    assert fold_batch_norm(folded) is folded
    assert names_of_norms(folded) == STAY[name]
    assert relative_change(network, folded, x) < 1e-5
    network.double()
    assert relative_change(network, fold_batch_norm(copy.deepcopy(network)), x.double()) < 1e-12


class Mixed(nn.Module):
    """Layers whose BatchNorm cannot be folded, and one that can."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.of_shared = nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3)
        self.twice, self.of_twice = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.active, self.of_active = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.one, self.other, self.of_both = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        self.before = nn.BatchNorm2d(3)
        self.padded, self.foldable = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.shared(x)
        y = y + self.of_shared(y)
        y = self.of_twice(self.twice(y)) + self.twice(y + 1)
        y = self.of_active(self.active(y).relu())
        y = self.of_both(self.one(y)) * self.of_both(self.other(y))
        return self.foldable(self.padded(self.before(y)))


def test_a_norm_that_is_not_alone_after_its_layer_stays():
    torch.manual_seed(0)
    network = Mixed().double()
    for norm in (module for module in network.modules() if isinstance(module, nn.BatchNorm2d)):
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            nn.init.uniform_(tensor, 0.2, 0.8)
    folded = fold_batch_norm(copy.deepcopy(network.eval()))
    assert names_of_norms(network) - names_of_norms(folded) == {"foldable"}
    assert relative_change(network, folded, torch.rand(2, 3, 6, 6).double()) < 1e-12


class Undecided(nn.Sequential):
    """A network whose path depends on the number of images."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if len(x) > 1 else x


def test_a_network_that_cannot_be_traced_stays_as_it_is():
    network = Undecided(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)).eval()
    assert fold_batch_norm(network) is network and names_of_norms(network) == {"1"}
