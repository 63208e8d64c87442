"""Fake CUDA tensors: they have shapes, types and devices, but no values, so that no GPU is needed.

torch's fake tensors refuse operations that mix devices, and those that need values on the host, which would wait for
the GPU. `fake_cuda` adds what they lack: it refuses copies that the host waits for, and replaces the parts of torch
that ask a driver. It depends on internals of torch.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import Node
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

GPU = torch.device("cuda", 0)
# Operations that change their arguments and have no implementation for fake tensors.
IN_PLACE = ("aten::_fused_sgd_", "aten::_amp_foreach_non_finite_check_and_unscale_")


@contextmanager
def fake_cuda() -> Iterator[None]:
    """In this context, new tensors are fake, and they can be on a CUDA device."""
    with ExitStack() as stack:
        mode = stack.enter_context(FakeTensorMode())
        mode.allow_fallback_kernels = False  # they would compute with real tensors of zeros
        stack.enter_context(mock.patch.object(nn.Module, "_apply", _apply))
        stack.enter_context(mock.patch.object(Tensor, "backward", _backward))
        stack.enter_context(mock.patch("torch.cuda.Event", Event))
        stack.enter_context(mock.patch("torch.cuda.is_bf16_supported", lambda *_, **__: True))
        stack.enter_context(mock.patch("torch.cuda.amp.common.amp_definitely_not_available", lambda: False))
        yield


class NeverWaits(TorchDispatchMode):
    """In this context, an operation raises AssertionError if the host would wait for the device."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, name = kwargs or {}, operation._schema.name
        if name in IN_PLACE:
            _check_optimiser_arguments(name, args, kwargs)
            return None
        if name == "aten::_amp_update_scale_":
            return args[0]
        if name == "aten::_local_scalar_dense" and args[0].device.type == "cpu":
            assert Event.arrived, "a number is read that may not have arrived"
            Event.arrived = False
            return 0
        result = operation(*args, **kwargs)
        if name in ("aten::_to_copy", "aten::copy_"):
            devices = {tensor.device for tensor in (*args, result) if isinstance(tensor, Tensor)}
            non_blocking = kwargs.get("non_blocking") or args[2:3] == (True,)
            assert len(devices) == 1 or non_blocking, f"{name}: the host waits for a copy between {devices}"
        return result


def _check_optimiser_arguments(name: str, args: tuple, kwargs: dict) -> None:
    """Check that everything is on the GPU in float32, and that weights and gradients have the same memory format."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    assert all(tensor.device == GPU and tensor.dtype == torch.float32 for tensor in tensors), name
    if name == "aten::_fused_sgd_":
        weights, gradients = args[:2]
        for weight, gradient in zip(weights, gradients, strict=True):
            assert weight.stride() == gradient.stride() or 1 in weight.shape


class Event:
    """A CUDA event that has happened, as everyone must ask before they read a number. Nobody may wait for it."""

    arrived = False

    def record(self) -> None:
        pass

    def query(self) -> bool:
        Event.arrived = True
        return True

    def synchronize(self) -> None:
        raise AssertionError("the host waits for the device")


def _apply(self: nn.Module, function: Any, recurse: bool = True) -> nn.Module:
    """nn.Module._apply, which `to` calls, without its swap of tensors: fake tensors cannot be swapped."""
    for child in self.children():
        child._apply(function)
    for name, parameter in self._parameters.items():
        if parameter is not None:
            self._parameters[name] = nn.Parameter(function(parameter.detach()), parameter.requires_grad)
    for name, buffer in self._buffers.items():
        if buffer is not None:
            self._buffers[name] = function(buffer)
    return self


def _backward(loss: Tensor) -> None:
    """Tensor.backward in Python: torch's engine asks the driver for streams."""
    gradients: dict[Node, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    with torch.no_grad():
        for node in _in_order(loss.grad_fn):
            received = gradients.pop(node, {})
            if hasattr(node, "variable"):
                _accumulate(node.variable, received[0])
                continue
            inputs = [received.get(number) for number in range(len(node._input_metadata))]
            outputs = node.apply(*inputs) if hasattr(node, "apply") else node(*inputs)
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            for gradient, (following, number) in zip(outputs, node.next_functions, strict=False):
                if following is None or gradient is None:
                    continue
                expected = following._input_metadata[number]
                assert gradient.device == expected.device
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                slots = gradients.setdefault(following, {})
                slots[number] = slots[number] + gradient if number in slots else gradient


def _in_order(start: Node) -> list[Node]:
    """The nodes of the graph, each before the nodes that it passes gradients to."""
    order, seen = [], {start}
    stack = [(start, iter(start.next_functions))]
    while stack:
        node, following = stack[-1]
        for child, _ in following:
            if child is not None and child not in seen:
                seen.add(child)
                stack.append((child, iter(child.next_functions)))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


def _accumulate(parameter: Tensor, gradient: Tensor) -> None:
    assert gradient.device == parameter.device and gradient.dtype == parameter.dtype
    gradient = torch.empty_like(parameter).copy_(gradient)
    parameter.grad = gradient if parameter.grad is None else parameter.grad + gradient
