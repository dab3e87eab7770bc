"""Products of which few rows go through a kernel of their own (`EngineConfig.narrow_products`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.errors import CheckpointError
from engine.model.linear import UNKNOWN_ROWS
from kernels.activation import swiglu_triton
from kernels.narrow_product import NARROW_ROWS, gated_product, narrow_product, tiles_of

MULTIPLE = 8
"""Inputs of a row are whole 16 bytes."""


class NarrowLinear:
    """`x @ weight.T`: up to `NARROW_ROWS` rows by the kernel, more by the library, and on a GPU all in float32, whose
    exact products have no tensor cores.

    Attributes:
        weight: `[outputs, inputs]`, contiguous. rows: as of `Linear`; any number will do.
    """

    rows = UNKNOWN_ROWS

    def __init__(self, weight: Tensor) -> None:
        """Takes `weight` `[outputs, inputs]`. Raises CheckpointError for a shape that a GPU cannot take."""
        outputs, inputs = weight.shape
        if weight.is_cuda and inputs % MULTIPLE:
            raise CheckpointError(
                f"narrow_products is true, and a weight is [{outputs}, {inputs}]; allowed: inputs in multiples of "
                f"{MULTIPLE}"
            )
        self.weight = weight.contiguous()
        # Every forward leaves them as it finds them, so that a CUDA graph can hold their address.
        self._arrivals = torch.zeros(tiles_of(outputs), dtype=torch.int32, device=weight.device)

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        if self._by_library(x):
            return F.linear(x, self.weight)
        return narrow_product(x, self.weight, self._arrivals)

    def gated(self, x: Tensor) -> Tensor:
        """SwiGLU of the product with gates and up: `x` `[rows, inputs]` to `[rows, outputs / 2]`."""
        if self._by_library(x):
            return swiglu_triton(F.linear(x, self.weight))
        return gated_product(x, self.weight)

    @staticmethod
    def _by_library(x: Tensor) -> bool:
        return x.shape[0] > NARROW_ROWS or (x.is_cuda and x.dtype is torch.float32)
