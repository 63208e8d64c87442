"""Cross-entropy over very many classes with constant centers. The logits [B, C] are never in memory at once.

For a sample of class y with unit embedding f, the logit of another class c is l_c = s * clamp(cos_c, -bound, bound),
and that of class y is l_y = s * target. With p_c = exp(l_c) / sum_j exp(l_j),

    loss            = log sum_j exp(l_j) - l_y
    d loss/d f      = s * sum_{c != y} p_c w_c, without classes whose cosine was clamped
    d loss/d target = s * (p_y - 1)

Both sums can be taken over one block of classes after the other, as in flash attention (Dao et al., NeurIPS 2022). Let
M be the maximum of the logits seen so far, T = sum_j exp(l_j - M), and W = sum_{c != y} exp(l_c - M) w_c. A block with
larger logits raises M to M', and T and W are multiplied by exp(M - M') before its terms are added. In the end
loss = M + log T - l_y and d loss/d f = s * W / T.

This takes two matrix products per block for forward and backward together, and no memory of size [B, C].
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CLASSES_PER_BLOCK = {"cpu": 4096, "cuda": 16384}  # fits a CPU's caches; on GPUs larger blocks launch fewer kernels


def block_cross_entropy(
    unit_f_s: Tensor, target: Tensor, unit_centers: Tensor, labels: Tensor, s: float, bound: float
) -> Tensor:
    """The cross-entropy [B] of the logits s * clamp(cosine, -bound, bound), with s * target for the sample's class.

    unit_f_s: unit embeddings [B, D]; target [B]; unit_centers [C, D], in the data type of the matrix products;
    labels: int64 [B]. Gradients reach unit_f_s (through the other classes) and target, not the centers. Sums are in the
    data type of unit_f_s.
    """
    return _BlockCrossEntropy.apply(unit_f_s, target, unit_centers, labels, s, bound)


class _BlockCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, unit_f_s: Tensor, target: Tensor, unit_centers: Tensor, labels: Tensor, s: float, bound: float
    ) -> Tensor:
        with torch.autocast(unit_f_s.device.type, enabled=False):
            dtype, size = product_type(unit_centers), CLASSES_PER_BLOCK[unit_f_s.device.type]
            scaled = (s * unit_f_s).to(dtype)  # [B, D]; scaled here, so that the logits need no pass to scale them
            maximum = s * target  # M [B]; the sums begin with the sample's own class
            total, weighted = torch.ones_like(target), torch.zeros_like(unit_f_s)  # T [B], W [B, D]
            for start in range(0, len(unit_centers), size):
                block = unit_centers[start : start + size].to(dtype)  # [size, D]
                unclamped = (scaled @ block.t()).to(unit_f_s.dtype)  # [B, size]
                logits = unclamped.clamp(-s * bound, s * bound)
                _exclude_own_class(logits, labels - start)
                new_maximum = torch.maximum(maximum, logits.amax(1))
                rescale = (maximum - new_maximum).exp()  # [B]
                exponentials = logits.sub_(new_maximum[:, None]).exp_()  # [B, size]
                total = total * rescale + exponentials.sum(1)
                if ctx.needs_input_grad[0]:
                    # Zero where the clamp passes no gradient. This takes one pass; public functions would take two.
                    exponentials = torch.ops.aten.hardtanh_backward(exponentials, unclamped, -s * bound, s * bound)
                    weighted = weighted * rescale[:, None] + (exponentials.to(dtype) @ block).to(unit_f_s.dtype)
                maximum = new_maximum
            p_y = (s * target - maximum).exp() / total  # [B]
            ctx.save_for_backward(s * weighted / total[:, None], s * (p_y - 1))
            return maximum + total.log() - s * target

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        by_unit_f_s, by_target = ctx.saved_tensors
        return gradient[:, None] * by_unit_f_s, gradient * by_target, None, None, None, None


def _exclude_own_class(logits: Tensor, columns: Tensor) -> None:
    """Set each row's logit of its own class to -inf, in place. Columns [B] outside this block have no effect."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    columns = columns.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_(1, columns, logits.gather(1, columns).masked_fill(inside[:, None], -torch.inf))


def product_type(unit_centers: Tensor) -> torch.dtype:
    """Data type of the matrix products: that of the centers, or float32 if the CPU has no fast kernel for that."""
    narrow = unit_centers.dtype.itemsize < 4
    if narrow and unit_centers.device.type == "cpu" and not _has_fast_products(unit_centers.dtype):
        return torch.float32
    return unit_centers.dtype


def _has_fast_products(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast matrix products for `dtype` on this CPU. It has them for bfloat16 with AVX-512."""
    return dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512"
