"""The PReLU of training on CPUs: the results of torch's, and the same gradients up to rounding."""

import pytest
import torch
from torch import nn

from backbones.mobilefacenet import MobileFaceNet
from train import prelu


def outputs_and_gradients(layer: nn.Module, dtype: torch.dtype, memory_format: torch.memory_format):
    """The output for noise, and the gradients for the input and the weight."""
    generator = torch.Generator().manual_seed(0)
    x, factors = (torch.randn(5, 6, 7, 4, generator=generator).to(dtype, memory_format=memory_format) for _ in "xf")
    x[0] = 0
    output = layer(x.requires_grad_())
    (output * factors).sum().backward()
    return output.detach(), x.grad, layer.weight.grad


@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("numbers", [1, 30, 2**18])
def test_output_and_gradients_are_those_of_torch(numbers, memory_format, monkeypatch):
    monkeypatch.setattr(prelu, "ELEMENTS_PER_CHUNK", numbers)
    for dtype, tolerance in ((torch.float64, 1e-14), (torch.float32, 1e-6)):
        layer = nn.PReLU(6, dtype=dtype)
        nn.init.uniform_(layer.weight, -0.5, 1.5)
        wanted = outputs_and_gradients(layer, dtype, memory_format)
        layer.weight.grad = None
        (found,) = prelu.replace_prelus(nn.Sequential(layer))
        assert type(found) is prelu.PReLU and found.weight is layer.weight
        results = outputs_and_gradients(found, dtype, memory_format)
        assert torch.equal(results[0], wanted[0])
        for result, expected in zip(results[1:], wanted[1:], strict=True):
            torch.testing.assert_close(result, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_student_has_the_gradients_that_it_has_with_the_prelu_of_torch(dtype):
    torch.manual_seed(0)
    plain = MobileFaceNet(16, width=0.125).to(memory_format=torch.channels_last)
    torch.manual_seed(0)
    fast = prelu.replace_prelus(MobileFaceNet(16, width=0.125)).to(memory_format=torch.channels_last)
    assert sum(type(layer) is prelu.PReLU for layer in fast.modules()) == 33
    images = torch.randn(4, 3, 112, 112).to(memory_format=torch.channels_last)
    for network in (plain, fast):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            output = network(images)
        output.float().pow(3).sum().backward()
    assert fast.state_dict().keys() == plain.state_dict().keys()
    tolerance = 1e-4 if dtype == torch.float32 else 0.03
    for (name, weight), other in zip(plain.named_parameters(), fast.parameters(), strict=True):
        assert other.grad.dtype == torch.float32
        assert (weight.grad - other.grad).norm() <= tolerance * weight.grad.norm() + 1e-6, name


def test_an_input_that_autocast_converts_has_the_gradients_of_torch():
    x = torch.randn(4, 6, 5, 5).to(memory_format=torch.channels_last)
    gradients = []
    for layer in (nn.PReLU(6), prelu.replace_prelus(nn.Sequential(nn.PReLU(6)))[0]):
        with torch.autocast("cpu", torch.bfloat16):
            output = layer(x.requires_grad_())
        gradients.append(torch.autograd.grad(output.float().pow(3).sum(), (x, layer.weight)))
    assert all(torch.equal(*pair) for pair in zip(*gradients, strict=True))


def test_a_layer_with_one_weight_stays_as_it_is():
    network = nn.Sequential(nn.PReLU())
    assert type(prelu.replace_prelus(network)[0]) is nn.PReLU
