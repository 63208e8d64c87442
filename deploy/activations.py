"""Changes of an exported graph that keep its embeddings: PReLU in parts that onnxruntime has fast kernels for, and
channels of similar range, which int8 needs.

onnxruntime has a slow kernel for PReLU, and none in int8. With a slope a <= 1, PReLU(z) = z + ReLU((a - 1) z): a 1x1
depthwise convolution with a fused ReLU, and an addition. A channel with a > 1 changes its sign before and after PReLU;
the same form with the same weight a - 1 then computes it.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
from onnx import NodeProto, helper, numpy_helper

ACTIVATIONS = "Relu", "LeakyRelu", "PRelu"  # f(s z) = s f(z) for s > 0
SMALLEST_SHARE = 1e-3  # range of a channel, as a share of the largest one: some channels are always 0


class Link(NamedTuple):
    """A convolution, the tensors before and after its activation, and the only node that reads the result: another
    convolution."""

    conv: NodeProto
    before: str
    after: str
    next_conv: NodeProto


class Graph:
    """The nodes and the weights of a model. `nodes` may be changed; `save` stores them in the model."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = list(model.graph.node)
        self.weights = {entry.name: entry for entry in model.graph.initializer}

    def producer(self, tensor: str) -> NodeProto | None:
        return next((node for node in self.nodes if tensor in node.output), None)

    def readers(self, tensor: str) -> list[NodeProto]:
        return [node for node in self.nodes if tensor in node.input]

    def weight(self, node: NodeProto, position: int) -> np.ndarray:
        """The weight that is an input of a node."""
        return numpy_helper.to_array(self.weights[node.input[position]])

    def set_weight(self, node: NodeProto, position: int, values: np.ndarray) -> None:
        """Give a node a weight of its own; other nodes may share the old one."""
        name = f"{node.output[0]}_input{position}"
        self.weights[name] = numpy_helper.from_array(np.ascontiguousarray(values, dtype=np.float32), name)
        node.input[position] = name

    def scale(self, link: Link, factors: np.ndarray) -> None:
        """Divide the channels of `link.before` by factors [C], and multiply the inputs of the next convolution."""
        for position in range(1, len(link.conv.input)):
            weight = self.weight(link.conv, position)  # [C, ...]
            self.set_weight(link.conv, position, weight / factors.reshape(-1, *[1] * (weight.ndim - 1)))
        axis = 0 if self.is_depthwise(link.next_conv) else 1
        factors = np.expand_dims(factors, [other for other in range(4) if other != axis])
        self.set_weight(link.next_conv, 1, self.weight(link.next_conv, 1) * factors)

    def is_depthwise(self, conv: NodeProto) -> bool:
        """Whether each channel is computed from the same channel of the input alone."""
        weight = self.weight(conv, 1)
        return weight.shape[1] == 1 and len(weight) == groups(conv)

    def after_activation(self, before: str) -> str | None:
        """The tensor after the activation, PReLU in parts included, of a tensor that nothing else reads."""
        readers = self.readers(before)
        if [node.op_type for node in readers] == ["Conv", "Add"] and self.is_depthwise(readers[0]):
            (relu,) = self.readers(readers[0].output[0])
            if relu.op_type == "Relu" and set(readers[1].input) == {before, relu.output[0]}:
                return readers[1].output[0]
        if len(readers) == 1 and readers[0].op_type in ACTIVATIONS:
            return readers[0].output[0]
        return None

    def links(self) -> Iterator[Link]:
        for conv in self.nodes:
            after = self.after_activation(conv.output[0]) if conv.op_type == "Conv" else None
            readers = self.readers(after) if after else []
            if len(readers) == 1 and readers[0].op_type == "Conv":
                following = readers[0]
                if groups(following) == 1 or self.is_depthwise(following):
                    yield Link(conv, conv.output[0], after, following)

    def save(self) -> None:
        """Store the nodes and the weights that they read in the model, and check it."""
        changed = onnx.GraphProto()
        changed.node.extend(self.nodes)
        used = {name for node in self.nodes for name in node.input}
        changed.initializer.extend(entry for name, entry in self.weights.items() if name in used)
        for field in ("node", "initializer"):
            self.model.graph.ClearField(field)
            getattr(self.model.graph, field).extend(getattr(changed, field))
        onnx.checker.check_model(self.model, full_check=True)


def groups(conv: NodeProto) -> int:
    return next((attribute.i for attribute in conv.attribute if attribute.name == "group"), 1)


def split_prelu(model: onnx.ModelProto) -> int:
    """Replace PReLUs by the three nodes of this module's description. Returns how many it had to leave: those with a
    slope above 1 that are not between two convolutions, and those without one slope per channel."""
    graph, left = Graph(model), 0
    links = {link.after: link for link in graph.links()}
    for node in [node for node in graph.nodes if node.op_type == "PRelu"]:
        slopes, link = graph.weight(node, 1), links.get(node.output[0])
        above = slopes.ravel() > 1
        if slopes.shape[-2:] != (1, 1) or (above.any() and link is None):
            left += 1
            continue
        if above.any():
            graph.scale(link, np.where(above, -1.0, 1.0))
        before, after = node.input[0], node.output[0]
        scaled = helper.make_node(
            "Conv", [before, ""], [f"{after}_scaled"], f"{after}_conv", group=slopes.size, kernel_shape=[1, 1]
        )
        graph.set_weight(scaled, 1, slopes.reshape(-1, 1, 1, 1) - 1)
        relu = helper.make_node("Relu", [scaled.output[0]], [f"{after}_negative"], f"{after}_relu")
        add = helper.make_node("Add", [before, relu.output[0]], [after], f"{after}_add")
        position = graph.nodes.index(node)
        graph.nodes[position : position + 1] = [scaled, relu, add]
    graph.save()
    return left


def equalise_channels(model: onnx.ModelProto, largest: Mapping[str, np.ndarray]) -> None:
    """Give the channels between two convolutions similar ranges, so that one scale of int8 fits them all.

    largest: for each tensor `before` of `links(model)`, the largest absolute value of each channel, [C]. A depthwise
    convolution has a scale for each channel, so the ranges become equal before it. Before others, the range of the
    channel and that of the weights that read it are made equal (SmoothQuant, Xiao et al., ICML 2023, with alpha = 0.5).
    """
    graph = Graph(model)
    for link in list(graph.links()):
        factors = _floored(largest[link.before])
        if not graph.is_depthwise(link.next_conv):
            factors = np.sqrt(factors / _floored(np.abs(graph.weight(link.next_conv, 1)).max((0, 2, 3))))
        graph.scale(link, factors / factors.max())
    graph.save()


def links(model: onnx.ModelProto) -> list[Link]:
    """The pairs of convolutions with an activation between them."""
    return list(Graph(model).links())


def _floored(ranges: np.ndarray) -> np.ndarray:
    return np.maximum(ranges, max(SMALLEST_SHARE * ranges.max(), np.finfo(np.float32).tiny)).astype(np.float64)
