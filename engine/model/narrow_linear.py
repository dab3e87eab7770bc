"""Products of which few rows go through a kernel of their own (`EngineConfig.narrow_products`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.model.linear import UNKNOWN_ROWS
from kernels.activation import swiglu_triton
from kernels.narrow_product import NARROW_ROWS, gated_product, narrow_product, tiles_of


class NarrowLinear:
    """`x @ weight.T`: up to `NARROW_ROWS` rows by the kernel, more by the library, and on a GPU all in float32, whose
    exact products have no tensor cores.

    Attributes:
        weight: `[outputs, inputs]`, contiguous. rows: as of `Linear`; any number will do.
    """

    rows = UNKNOWN_ROWS

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()
        # Every forward leaves them as it finds them, so that a CUDA graph can hold their address.
        self._arrivals = torch.zeros(tiles_of(weight.shape[0]), dtype=torch.int32, device=weight.device)

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
