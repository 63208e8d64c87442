"""Folding of BatchNorm into the layer before it, for networks that are not trained further."""

from collections import Counter

import torch
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_weights


@torch.no_grad()
def fold_batch_norm(network: nn.Module) -> nn.Module:
    """Fold each BatchNorm that directly follows a convolution or a linear layer into it, in place. Returns the network.

    network: in eval mode. Its output changes by rounding only. The layer's weight and bias change, and the
    BatchNorm becomes an nn.Identity. A BatchNorm after anything else stays: it could be folded into the convolution
    after it, but not exactly if that has zero padding. A network that torch.fx
    cannot trace, because its control flow depends on the input, stays as it is.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception:  # any error of the network's own code, which is called with a placeholder instead of a tensor
        return network
    modules = dict(network.named_modules())
    calls = [node for node in graph.nodes if node.op == "call_module"]
    count = Counter(node.target for node in calls)
    for node in calls:
        norm, source = modules[node.target], node.all_input_nodes[0]
        layer = modules[source.target] if source.op == "call_module" else None
        if not (isinstance(norm, _BatchNorm) and isinstance(layer, nn.Conv2d | nn.Linear)):
            continue
        if count[node.target] == count[source.target] == len(source.users) == 1:  # the layer serves this BatchNorm only
            layer.weight, layer.bias = fuse_conv_bn_weights(
                layer.weight, layer.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
            )
            network.set_submodule(node.target, nn.Identity().eval())
    return network
