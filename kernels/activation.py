"""SwiGLU: silu(gate) * up over the stacked product of both (contract 3.1), one pass."""

from __future__ import annotations

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from kernels.overlap import overlapping, wait_for_inputs

_LANES = 1024
"""Columns of a program."""


def swiglu_torch(gate_up: Tensor) -> Tensor:
    """silu(gate) * up.

    Args:
        gate_up: `[rows, 2 * inner]`, contiguous: a row's gate, then its up projection.

    Returns `[rows, inner]` of the same type.
    """
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate).mul_(up)


def swiglu_triton(gate_up: Tensor) -> Tensor:
    """silu(gate) * up in one launch; see `swiglu_torch`. It rounds where that form does: silu, then the product."""
    rows, inner = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(rows, inner, dtype=gate_up.dtype, device=gate_up.device)
    grid = (rows, triton.cdiv(inner, _LANES))
    _swiglu_kernel[grid](gate_up, out, INNER=inner, LANES=_LANES, num_warps=4, **overlapping(gate_up))
    return out


@triton.jit  # type: ignore[untyped-decorator]
def _swiglu_kernel(  # type: ignore[no-untyped-def]
    gate_up_ptr,
    out_ptr,
    INNER: tl.constexpr,
    LANES: tl.constexpr,
    OVERLAPS: tl.constexpr,
):
    wait_for_inputs(OVERLAPS)
    row = tl.program_id(0).to(tl.int64)
    lane = tl.program_id(1) * LANES + tl.arange(0, LANES)
    inside = lane < INNER
    kind = out_ptr.dtype.element_ty
    gate = tl.load(gate_up_ptr + row * (2 * INNER) + lane, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + row * (2 * INNER) + INNER + lane, mask=inside, other=0.0).to(tl.float32)
    silu = (gate / (1.0 + tl.exp(-gate))).to(kind).to(tl.float32)
    tl.store(out_ptr + row * INNER + lane, (silu * up).to(kind), mask=inside)
