"""RMSNorm with the residual sum before it, one pass over the rows (contract 3.1)."""

from __future__ import annotations

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.overlap import overlapping, wait_for_inputs


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """RMSNorm over the last axis of `x` `[rows, hidden]`: statistics in float32, cast back, then the weight `[hidden]`.

    In plain PyTorch on every device; where kernels run, `add_and_norm_triton` without a change does the same.
    """
    if x.dtype is torch.float32:
        # The fewest passes: for the few rows of a CPU's forward a call costs more than what it does.
        length = torch.linalg.vector_norm(x, 2, -1, True)
        mean_square = torch.addcmul(_scalar(eps, x.device), length, length, value=1 / x.shape[-1])
        return (x * mean_square.rsqrt_()).mul_(weight)
    wide = x.float()
    return weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)).to(x.dtype)


@lru_cache(maxsize=16)
def _scalar(value: float, device: torch.device) -> Tensor:
    return torch.tensor(value, device=device)


def add_and_norm_torch(x: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """The residual stream after a block's change, and its RMSNorm for the next block.

    Args:
        x: `[rows, hidden]`, contiguous. change: the same shape and type, or None before the first block.
        weight: `[hidden]` of the same type.

    Returns `x + change` (`x` itself without a change) and its norm, both of x's shape and type.
    """
    if change is not None:
        x = x + change
    return x, rms_norm(x, weight, eps)


def add_and_norm_triton(x: Tensor, change: Tensor | None, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Sum and norm in one launch, one program per row; see `add_and_norm_torch`.

    It rounds where the PyTorch form does: the sum, the normed value before the weight, the product.
    """
    rows, hidden = x.shape
    normed = torch.empty_like(x)
    total = x if change is None else torch.empty_like(x)
    lanes = triton.next_power_of_2(hidden)
    _add_and_norm_kernel[(rows,)](
        x,
        change,
        weight,
        None if change is None else total,
        normed,
        eps,
        HIDDEN=hidden,
        LANES=lanes,
        num_warps=min(16, max(1, lanes // 512)),
        **overlapping(x),
    )
    return total, normed


@triton.jit  # type: ignore[untyped-decorator]
def _add_and_norm_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    change_ptr,
    weight_ptr,
    total_ptr,
    normed_ptr,
    eps,
    HIDDEN: tl.constexpr,
    LANES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64) * HIDDEN
    lane = tl.arange(0, LANES)
    inside = lane < HIDDEN
    kind = normed_ptr.dtype.element_ty
    x = tl.load(x_ptr + row + lane, mask=inside, other=0.0).to(tl.float32)
    if change_ptr is not None:
        x += tl.load(change_ptr + row + lane, mask=inside, other=0.0).to(tl.float32)
        rounded = x.to(kind)
        tl.store(total_ptr + row + lane, rounded, mask=inside)
        x = rounded.to(tl.float32)
    weight = tl.load(weight_ptr + lane, mask=inside, other=0.0).to(tl.float32)
    normed = (x * tl.rsqrt(tl.sum(x * x, axis=0) / HIDDEN + eps)).to(kind).to(tl.float32)
    tl.store(normed_ptr + row + lane, (normed * weight).to(kind), mask=inside)
