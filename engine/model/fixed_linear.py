"""Products whose rows have the same bits in any batch on a GPU (`EngineConfig.batch_invariant`)."""

from __future__ import annotations

from torch import Tensor

from kernels.fixed_product import fixed_product


class FixedLinear:
    """`x @ weight.T` by a kernel of one tile size.

    Attributes:
        weight: `[outputs, inputs]`, contiguous. fewest_rows: as of `Linear`; None, for any number will do.
    """

    fewest_rows: int | None = None

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight.contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        return fixed_product(x, self.weight)
