"""Cross-entropy over very many classes whose centers are constants, without logits of the whole batch.

The classes are passed once, block by block. As in flash attention (Dao et al., NeurIPS 2022), the normaliser and the
gradient with respect to the embeddings grow side by side under a running maximum: two matrix products a block, forward
and backward, and nothing of size [B, C].
"""

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

CLASSES_A_BLOCK = {"cpu": 4096, "cuda": 16384}  # what a CPU's caches hold; on a GPU, a quarter of the kernels to launch


def block_cross_entropy(
    unit: Tensor, target: Tensor, unit_centers: Tensor, labels: Tensor, s: float, bound: float
) -> Tensor:
    """The cross-entropy [B] of the logits s * clamp(cosine, -bound, bound), the target's being s * target.

    unit: unit embeddings [B, D]; target [B]; unit_centers [C, D] without gradient, in the type that products run in;
    labels [B]. Gradients reach `unit` (from the other classes) and `target`; all sums are in their type.
    """
    return _BlockCrossEntropy.apply(unit, target, unit_centers, labels, s, bound)


class _BlockCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, unit: Tensor, target: Tensor, unit_centers: Tensor, labels: Tensor, s: float, bound: float
    ) -> Tensor:
        with torch.autocast(unit.device.type, enabled=False):
            dtype, size = product_type(unit_centers), CLASSES_A_BLOCK[unit.device.type]
            scaled = (s * unit).to(dtype)  # s in the product, and no pass of its own over the logits
            highest = s * target  # running maximum of the logits; sums are relative to it
            total, pull = torch.ones_like(target), torch.zeros_like(unit)
            for start in range(0, len(unit_centers), size):
                block = unit_centers[start : start + size].to(dtype)
                unbounded = (scaled @ block.t()).to(unit.dtype)  # [B, block]
                logits = unbounded.clamp(-s * bound, s * bound)
                _leave_out(logits, labels - start)
                raised = torch.maximum(highest, logits.amax(1))
                fade, powers = (highest - raised).exp(), logits.sub_(raised[:, None]).exp_()
                total = total * fade + powers.sum(1)
                if ctx.needs_input_grad[0]:
                    # The clamp passes no gradient outside its bounds.
                    powers = torch.ops.aten.hardtanh_backward(powers, unbounded, -s * bound, s * bound)
                    pull = pull * fade[:, None] + (powers.to(dtype) @ block).to(unit.dtype)
                highest = raised
            own = (s * target - highest).exp() / total  # [B], the target's probability
            ctx.save_for_backward(s * pull / total[:, None], s * (own - 1))
            return highest + total.log() - s * target

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor | None, ...]:
        to_unit, to_target = ctx.saved_tensors
        return gradient[:, None] * to_unit, gradient * to_target, None, None, None, None


def _leave_out(logits: Tensor, columns: Tensor) -> None:
    """-inf, in place, at each row's own class where it is one of these columns."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    columns = columns.clamp(0, logits.shape[1] - 1)[:, None]
    logits.scatter_(1, columns, logits.gather(1, columns).masked_fill(inside[:, None], -torch.inf))


def product_type(unit_centers: Tensor) -> torch.dtype:
    """Theirs; float32 for narrower ones on CPUs that cannot multiply them, where torch's products crawl."""
    narrow = unit_centers.dtype.itemsize < 4
    if narrow and unit_centers.device.type == "cpu" and not _multiplies(unit_centers.dtype):
        return torch.float32
    return unit_centers.dtype


def _multiplies(dtype: torch.dtype) -> bool:
    """Whether this CPU has matrix products in `dtype`: bfloat16 from AVX-512 on, as oneDNN has them."""
    return dtype == torch.bfloat16 and torch.backends.cpu.get_cpu_capability() == "AVX512"
