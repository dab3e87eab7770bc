"""Products whose rows have the same bits in any batch on a GPU (`EngineConfig.batch_invariant`)."""

from __future__ import annotations

from torch import Tensor

from engine.model.linear import UNKNOWN_ROWS
from kernels.fixed_product import fixed_product


class FixedLinear:
    """`x @ weight.T` by a kernel of one tile size.

    Attributes:
        weight: `[outputs, inputs]`, contiguous. rows: as of `Linear`; any number will do.
    """

    rows = UNKNOWN_ROWS

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        return fixed_product(x, self.weight)
