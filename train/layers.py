"""Replaces layers of a network by others with the same weights."""

from collections.abc import Callable

from torch import nn


def replace_layers(network: nn.Module, make: Callable[[nn.Module], nn.Module | None]) -> None:
    """Replace each layer inside the network by `make(layer)`, in place, unless that is None."""
    for parent in list(network.modules()):
        for name, layer in list(parent.named_children()):
            replacement = make(layer)
            if replacement is not None:
                setattr(parent, name, replacement)
