"""The class centers at unit length. They are kept between steps, so that a step normalises only the rows it moved."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

ROWS_PER_BLOCK = 65536  # centers normalised at a time, so that no second float32 copy of all of them is needed


class UnitCenters:
    """The centers at unit length, in the data type of the matrix products. They are not saved.

    `update_rows` normalises only the rows that a step moved. After any other change of the centers (another tensor,
    another data type, an in-place edit), `get` computes all rows again.
    """

    def __init__(self) -> None:
        self._unit: Tensor | None = None
        self._guard: Any = None  # autograd node that has saved the centers

    def get(self, centers: Tensor) -> Tensor:
        """The unit centers [C, D] of `centers` [C, D]. If autocast is on, they have its data type."""
        dtype = autocast_type(centers)
        if not self._up_to_date(centers, dtype):
            with torch.inference_mode(False), torch.no_grad():  # later steps write to it
                self._unit = unit_length(centers, dtype)
            self._guard = _InPlaceGuard.of(centers)
        return self._unit

    def update_rows(self, centers: Tensor, labels: Tensor) -> None:
        """Normalise the rows `labels` of `centers` again, after a change of no other rows since the last call."""
        self._unit[labels] = F.normalize(centers[labels], eps=1e-12).to(self._unit.dtype)
        self._guard = _InPlaceGuard.of(centers)

    def _up_to_date(self, centers: Tensor, dtype: torch.dtype) -> bool:
        if self._unit is None or self._unit.dtype != dtype:
            return False
        try:
            (saved,) = self._guard.saved_tensors
        except RuntimeError:  # raised by autograd if the saved tensor was changed in place
            return False
        return saved is centers

    def __reduce__(self) -> tuple[type, tuple]:
        return UnitCenters, ()  # copies and pickles of a head start without unit centers


def autocast_type(centers: Tensor) -> torch.dtype:
    """The data type of autocast, if it is on, else that of the centers."""
    device = centers.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else centers.dtype


def unit_length(centers: Tensor, dtype: torch.dtype) -> Tensor:
    """The centers [C, D] at unit length, in another data type and without gradient."""
    result = torch.empty_like(centers, dtype=dtype)
    for rows, unit in zip(centers.detach().split(ROWS_PER_BLOCK), result.split(ROWS_PER_BLOCK), strict=True):
        unit.copy_(F.normalize(rows, eps=1e-12))
    return result


class _InPlaceGuard(torch.autograd.Function):
    """Saves a tensor as for a backward pass. Reading `saved_tensors` then fails if the tensor was changed in place."""

    @staticmethod
    def of(tensor: Tensor) -> Any:
        """The autograd node that has saved `tensor`, without a copy."""
        with torch.inference_mode(False), torch.enable_grad():
            return _InPlaceGuard.apply(torch.zeros((), requires_grad=True), tensor).grad_fn

    @staticmethod
    def forward(ctx: FunctionCtx, start: Tensor, tensor: Tensor) -> Tensor:
        ctx.save_for_backward(tensor)
        return start.clone()
