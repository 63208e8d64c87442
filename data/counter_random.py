"""Random numbers as a function of a key and a counter: many per image, made on the device and equal in any batch."""

import torch
from torch import Tensor


def keys_from(draws: Tensor) -> Tensor:
    """One key per image, int32 [B], from at least one random number per image, float32 [B, N] in [0, 1)."""
    key = torch.zeros(len(draws), dtype=torch.int32, device=draws.device)
    for bits in draws.view(torch.int32).unbind(1):
        key = _mix(key ^ bits)
    return key


def uniform(keys: Tensor, count: int) -> Tensor:
    """`count` uniform numbers for each key: float32 [B, count] in (0, 1). keys: int32 [B].

    They are the centers of 2^23 equal intervals, so none is rounded to 0 or 1.
    """
    counters = _mix(torch.arange(count, dtype=torch.int32, device=keys.device))
    bits = _mix(keys[:, None] ^ counters)
    return _shifted(bits, 9).float().add_(0.5).mul_(2**-23)


def _mix(x: Tensor) -> Tensor:
    """A bijection of 32 bits in which each bit of the result depends on all bits of x: lowbias32 of C. Wellons, 2018.

    Products of int32 keep the lower 32 bits. The second constant is 0x846ca68b.
    """
    x = (x ^ _shifted(x, 16)).mul_(0x7FEB352D)
    x.bitwise_xor_(_shifted(x, 15)).mul_(0x846CA68B - 2**32)
    return x.bitwise_xor_(_shifted(x, 16))


def _shifted(x: Tensor, places: int) -> Tensor:
    """x shifted to the right as 32 bits without a sign."""
    return (x >> places).bitwise_and_(2 ** (32 - places) - 1)
