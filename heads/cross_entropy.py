"""Cross-entropy over very many classes with constant centers. The logits [B, C] are never in memory at once.

For a sample of class y with unit embedding f, the logit of another class c is l_c = s * clamp(cos_c, -bound, bound),
and that of class y is l_y = s * target. With

    T = sum_{c != y} exp(l_c)
    W = sum_{c != y} exp(l_c) w_c, without classes whose cosine was clamped
    z = log T - l_y

the cross-entropy and its derivatives are

    loss            = log(1 + exp(z))
    d loss/d f      = s * sigmoid(z) * W / T
    d loss/d target = -s * sigmoid(z)

T and W are sums over blocks of classes. This takes two matrix products per block for forward and backward together, and
no memory of size [B, C].

If s is small enough, T and W are added up without scaling (`_needs_maximum` says when). Otherwise exp(l_c) could
overflow or underflow, and exp(l_c - M) is added up, as in flash attention (Dao et al., NeurIPS 2022). M is the maximum
of the logits seen so far, and starts at l_y. A block with larger logits raises M to M', and T and W are multiplied by
exp(M - M') before the terms of the block are added. In the end, z = M + log T - l_y.

In the code, logits are divided by log 2, so that 2^x takes the place of exp(x). exp2 is faster than exp.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CLASSES_PER_BLOCK = {"cpu": 4096, "cuda": 16384}  # fits a CPU's caches; on GPUs larger blocks launch fewer kernels


def block_cross_entropy(
    unit_f_s: Tensor,
    target: Tensor,
    unit_centers: Tensor,
    labels: Tensor,
    s: float,
    bound: float,
    add: Callable[..., None] | None = None,
) -> Tensor:
    """The cross-entropy [B] of the logits s * clamp(cosine, -bound, bound), with s * target for the sample's class.

    unit_f_s: unit embeddings [B, D]; target [B]; unit_centers [C, D], in the data type of the matrix products;
    labels: int64 [B]; add: the compiled `add_block`, or None for the eager one. Gradients reach unit_f_s (through the
    other classes) and target, not the centers. Sums are in the data type of unit_f_s.
    """
    return _BlockCrossEntropy.apply(unit_f_s, target, unit_centers, labels, s, bound, add or add_block)


class _BlockCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx,
        unit_f_s: Tensor,
        target: Tensor,
        unit_centers: Tensor,
        labels: Tensor,
        s: float,
        bound: float,
        add: Callable[..., None],
    ) -> Tensor:
        with torch.autocast(unit_f_s.device.type, enabled=False):
            sums = sum_classes(
                unit_f_s, target, unit_centers, labels, len(unit_centers), s, bound, add, ctx.needs_input_grad[0]
            )
            loss, grad_unit_f_s, grad_target = finish(sums, target, s)
            ctx.save_for_backward(grad_unit_f_s, grad_target)
            return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        grad_unit_f_s, grad_target = ctx.saved_tensors
        grad_unit_f_s = None if grad_unit_f_s is None else gradient[:, None] * grad_unit_f_s
        return grad_unit_f_s, gradient * grad_target, None, None, None, None, None


class ClassSums(NamedTuple):
    """maximum: M [B] to base 2, or None if exponentials are added up without scaling; total: T [B]; weighted: W [B, D],
    or None if no gradient is needed."""

    maximum: Tensor | None
    total: Tensor
    weighted: Tensor | None


def sum_classes(
    unit_f_s: Tensor,
    target: Tensor,
    unit_centers: Tensor,
    labels: Tensor,
    classes: int,
    s: float,
    bound: float,
    add: Callable[..., None],
    needs_gradient: bool,
) -> ClassSums:
    """The sums over the classes of `unit_centers` [C, D], a part of `classes` classes.

    labels: int64 [B], the rows of the samples' classes; below 0 or at least C if the class is in another part. The
    other arguments are those of `block_cross_entropy`.
    """
    dtype, size = product_type(unit_centers), CLASSES_PER_BLOCK[unit_f_s.device.type]
    scale = s / math.log(2)
    scaled = (scale * unit_f_s).to(dtype)  # [B, D]; scaled here, so that the logits need no pass to scale them
    maximum = scale * target if _needs_maximum(s * bound, classes, dtype) else None
    total = torch.zeros_like(target)
    weighted = torch.zeros_like(unit_f_s) if needs_gradient else None
    for start in range(0, len(unit_centers), size):
        block = unit_centers[start : start + size].to(dtype)  # [size, D]
        add(scaled, block, labels - start, scale * bound, maximum, total, weighted)
    return ClassSums(maximum, total, weighted)


def finish(sums: ClassSums, target: Tensor, s: float) -> tuple[Tensor, Tensor | None, Tensor]:
    """The cross-entropy [B] from the sums over all other classes, and its derivatives by f [B, D] and target [B].

    The derivative by f, which is None without W, is written over W. If W has only a part of the classes, it is the
    part of the derivative that they contribute.
    """
    maximum, total, weighted = sums
    z = total.log() - s * target  # [B]
    if maximum is not None:
        z = z + math.log(2) * maximum
    others = s * z.sigmoid()  # [B], s * (1 - p_y)
    if weighted is not None:
        smallest = torch.finfo(total.dtype).tiny  # T is 0 if there is no other class
        weighted *= (others / total.clamp_min(smallest))[:, None]
    return -F.logsigmoid(-z), weighted, -others  # log(1 + exp(z)); torch's softplus is linear above a threshold


def class_gradients(
    sums: ClassSums, others: Tensor, unit_f_s: Tensor, unit_centers: Tensor, labels: Tensor, s: float, bound: float
) -> Tensor:
    """The derivative of the sum of all losses by the unit centers [C, D], other than through the targets.

    sums: over all classes; others: s * (1 - p_y) [B]; the other arguments are those of `sum_classes`. Takes two more
    matrix products per block, because the exponentials are computed again.
    """
    dtype, size = product_type(unit_centers), CLASSES_PER_BLOCK[unit_f_s.device.type]
    scale = s / math.log(2)
    shrink = 32.0 if dtype == torch.float16 else 1.0  # a sum over the batch could exceed float16's largest number
    unit, scaled, limit = (unit_f_s / shrink).to(dtype), (scale * unit_f_s).to(dtype), scale * bound
    weight = others / sums.total.clamp_min(torch.finfo(sums.total.dtype).tiny)
    maximum = torch.zeros_like(weight) if sums.maximum is None else sums.maximum
    gradients = torch.empty_like(unit_centers, dtype=unit_f_s.dtype)
    for start in range(0, len(unit_centers), size):
        block = unit_centers[start : start + size].to(dtype)
        logits = (scaled @ block.t()).to(weight.dtype)  # [B, size]
        clamped = _fill_own_class(logits.clamp(-limit, limit), labels - start, -torch.inf)
        exponentials = clamped.sub_(maximum[:, None]).exp2_()
        _zero_where_clamped(exponentials, logits, -limit, limit)
        gradients[start : start + size] = exponentials.mul_(weight[:, None]).to(dtype).t() @ unit
    return gradients.mul_(shrink) if shrink > 1 else gradients


def add_block(
    scaled: Tensor,
    block: Tensor,
    columns: Tensor,
    limit: float,
    maximum: Tensor | None,
    total: Tensor,
    weighted: Tensor | None,
) -> None:
    """Add a block of classes to the sums, in place. Logits are to base 2.

    scaled [B, D]: embeddings times the scale of the logits; block [size, D]: unit centers, in the same data type;
    columns: int64 [B], the own class of each sample, counted from the first class of the block. It is below 0 or at
    least `size` if the class is in another block. limit: logits are clamped to [-limit, limit]; maximum: M [B], or None
    if exponentials are added up without scaling; total: T [B]; weighted: W [B, D], or None if no gradient is needed.
    """
    product = scaled @ block.t()  # [B, size], in the data type of the products
    logits = product.to(total.dtype)
    if maximum is None:
        # In this order, every pass changes the same array in place, and it stays in the CPU's cache.
        smallest, largest = 2.0**-limit, 2.0**limit
        exponentials = _fill_own_class(logits.exp2_().clamp_(smallest, largest), columns, 0.0)
        total += exponentials.sum(1)
        _zero_where_clamped(exponentials, exponentials, smallest, largest)
    else:
        clamped = _fill_own_class(logits.clamp(-limit, limit), columns, -torch.inf)
        new_maximum = torch.maximum(maximum, clamped.amax(1))
        rescale = (maximum - new_maximum).exp2()  # [B]
        maximum.copy_(new_maximum)
        exponentials = clamped.sub_(new_maximum[:, None]).exp2_()
        total.mul_(rescale).add_(exponentials.sum(1))
        if weighted is not None:
            weighted *= rescale[:, None]
        _zero_where_clamped(exponentials, logits, -limit, limit)
    if weighted is not None:
        weighted += product.copy_(exponentials) @ block


def _fill_own_class(values: Tensor, columns: Tensor, fill: float) -> Tensor:
    """Set each row's value of its own class to `fill`. Columns [B] outside of `values` [B, size] have no effect."""
    columns = columns[:, None]
    if torch.compiler.is_compiling():  # a comparison becomes part of the kernels before and after it
        return torch.where(columns == torch.arange(values.shape[1], device=values.device), fill, values)
    # Otherwise, only one number per row is touched.
    inside = columns.clamp(0, values.shape[1] - 1)
    return values.scatter_(1, inside, values.gather(1, inside).masked_fill_(columns == inside, fill))


def _zero_where_clamped(exponentials: Tensor, values: Tensor, smallest: float, largest: float) -> None:
    """Set exponentials to 0 where `values` are at a limit or beyond it. There, the clamp passes no gradient."""
    # This takes one pass over the array; public functions would take two.
    torch.ops.aten.hardtanh_backward(exponentials, values, smallest, largest, grad_input=exponentials)


def _needs_maximum(limit: float, classes: int, dtype: torch.dtype) -> bool:
    """Whether exponentials of logits in [-limit, limit] have to be added up relative to their maximum.

    Without a maximum, the largest sum is classes * exp(limit). It must be representable in `dtype`, the data type of
    the products, with a factor of e to spare for rounding: limit + log(classes) < log(largest number) - 1. Then
    exp(-limit) is representable at full precision, too. So no maximum is needed in float32 and bfloat16 up to limit 72
    for 6 million classes and up to limit 64 for 2e10 classes, in float64 up to limit 690, in float16 up to limit 1 for
    8,000 classes.
    """
    return limit + math.log(classes) >= math.log(torch.finfo(dtype).max) - 1


def product_type(unit_centers: Tensor) -> torch.dtype:
    """Data type of the matrix products: that of the centers, or float32 if the CPU has no fast kernel for that."""
    narrow = unit_centers.dtype.itemsize < 4
    if narrow and unit_centers.device.type == "cpu" and not _has_fast_products(unit_centers.dtype):
        return torch.float32
    return unit_centers.dtype


def _has_fast_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast matrix products for `dtype` on this CPU. It has them for bfloat16 with AVX-512."""
    return dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512"
