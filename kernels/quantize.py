"""Rows in FP8 (E4M3, 4 bits of exponent and 3 of mantissa), each with a scale of its own.

Weights are quantised once by output channel, activations before every product by token; a product of both then needs
one multiplication by two scales at its end (dynamic W8A8, as in Micikevicius et al., arXiv 2209.05433).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.switch import use_triton

FP8 = torch.float8_e4m3fn
LARGEST = 448.0
"""The largest number of the format."""
_SMALLEST_SCALE = 1e-12
"""Rows of zeros have this scale."""


class QuantizedRows(NamedTuple):
    """`values` `[rows, n]` in FP8 and `scales` float32 `[rows, 1]`: a row is values * scale."""

    values: Tensor
    scales: Tensor

    def restored(self, dtype: torch.dtype) -> Tensor:
        """The rows that are meant, `[rows, n]`."""
        return (self.values.float() * self.scales).to(dtype)


def quantize_rows(x: Tensor) -> QuantizedRows:
    """`x` `[rows, n]` with every row's largest magnitude at the largest number of the format."""
    return quantize_rows_triton(x) if use_triton(x) else quantize_rows_torch(x)


def quantize_rows_torch(x: Tensor) -> QuantizedRows:
    """The plain form; see `quantize_rows`."""
    wide = x.float()
    scales = wide.abs().amax(dim=-1, keepdim=True).div_(LARGEST).clamp_(min=_SMALLEST_SCALE)
    # Rounded up by a bit the largest magnitude would be no number of the format.
    return QuantizedRows((wide / scales).clamp_(-LARGEST, LARGEST).to(FP8), scales)


def quantize_rows_triton(x: Tensor) -> QuantizedRows:
    """Both passes in one launch, one program per row, without a host sync; see `quantize_rows`."""
    rows, width = x.shape
    x = x.contiguous()
    values = torch.empty(rows, width, dtype=FP8, device=x.device)
    scales = torch.empty(rows, 1, dtype=torch.float32, device=x.device)
    lanes = min(triton.next_power_of_2(width), MOST_LANES)
    _quantize_rows_kernel[(rows,)](
        x, values, scales, WIDTH=width, LANES=lanes, LARGEST=LARGEST, SMALLEST=_SMALLEST_SCALE, num_warps=warps(lanes)
    )
    return QuantizedRows(values, scales)


MOST_LANES = 8192
"""Columns that a program holds at once; it reads a wider row twice."""


def warps(lanes: int) -> int:
    """Warps of a program with so many lanes."""
    return min(16, max(1, lanes // 512))


@triton.jit  # type: ignore[untyped-decorator]
def _quantize_rows_kernel(  # type: ignore[no-untyped-def]
    x_ptr,
    values_ptr,
    scales_ptr,
    WIDTH: tl.constexpr,
    LANES: tl.constexpr,
    LARGEST: tl.constexpr,
    SMALLEST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64) * WIDTH
    lane = tl.arange(0, LANES)
    most = tl.zeros((LANES,), dtype=tl.float32)
    for start in range(0, WIDTH, LANES):
        inside = start + lane < WIDTH
        most = tl.maximum(most, tl.abs(tl.load(x_ptr + row + start + lane, mask=inside, other=0.0).to(tl.float32)))
    scale = tl.maximum(tl.max(most, axis=0) / LARGEST, SMALLEST)
    tl.store(scales_ptr + tl.program_id(0), scale)
    for start in range(0, WIDTH, LANES):
        inside = start + lane < WIDTH
        x = tl.load(x_ptr + row + start + lane, mask=inside, other=0.0).to(tl.float32) / scale
        x = tl.minimum(tl.maximum(x, -LARGEST), LARGEST)
        tl.store(values_ptr + row + start + lane, x.to(values_ptr.dtype.element_ty), mask=inside)
