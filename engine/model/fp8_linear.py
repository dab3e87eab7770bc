"""Products with weights in FP8, quantised when they are loaded: half the bytes that a forward has to read on a GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.linear import UNKNOWN_ROWS, Linear
from kernels.quantize import quantize_rows

MULTIPLE = 16
"""Inputs and outputs of an FP8 product on a GPU are multiples of this."""


class Fp8Linear:
    """`x @ weight.T` with both sides in FP8: the weight by output channel, `x` by row.

    On a GPU the weight is kept in FP8 and the tensor cores multiply FP8. On a CPU, which has no such product, the
    restored numbers are multiplied in the activations' type: the same values (what they cost in quality can be measured
    there), without the gain in memory and time.

    Attributes:
        rows: as of `Linear`.
    """

    def __init__(self, weight: Tensor) -> None:
        """Takes `weight` `[outputs, inputs]`; it can go. Raises CheckpointError for a shape that a GPU cannot take."""
        outputs, inputs = weight.shape
        if weight.is_cuda and (outputs % MULTIPLE or inputs % MULTIPLE):
            raise CheckpointError(
                f"quantization is 'fp8', and a weight is [{outputs}, {inputs}]; allowed: multiples of {MULTIPLE}"
            )
        with torch.inference_mode():
            rows = quantize_rows(weight)
            self._on_gpu = weight.is_cuda
            self.rows = UNKNOWN_ROWS
            if self._on_gpu:
                self._values, self._scales = rows.values, rows.scales.t().contiguous()
            else:
                self._restored = Linear(rows.restored(weight.dtype))
                self.rows = self._restored.rows

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]` of the same type."""
        rows = quantize_rows(x)
        if not self._on_gpu:
            return self._restored(rows.restored(x.dtype))
        return torch._scaled_mm(
            rows.values, self._values.t(), scale_a=rows.scales, scale_b=self._scales, out_dtype=x.dtype
        )
