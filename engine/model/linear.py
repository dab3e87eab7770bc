"""Matrix products whose rows come out the same in any batch, and fast for few rows.

On a CPU in float32 the weight is packed for oneDNN: for the few rows of a canvas it needs half the time of MKL, and a
row's bits do not depend on the number of rows from `Linear.fewest_rows` on (seen for 2 to 500 rows with one and two
threads on AVX-512, torch 2.13). On a GPU the weight stays as checkpoints have it, outputs first,
elsewhere it lies inputs first, for a plain product.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# Named with its overload, which otherwise is searched for at every call.
_packed_product = torch.ops.mkldnn._linear_pointwise.default

_EXPECTED_ROWS = 32
"""The packing is chosen for about so many rows: a canvas. Packed for 1 row, that one would take another path."""
_PROBES = 4
"""Rows that are tried alone. Where sums differ, a row of many outputs shows it."""


class Linear:
    """`x @ weight.T`. Owns its copy of the weight; the one it was made from can go.

    Attributes:
        packed: whether the weight is oneDNN's.
        fewest_rows: rows from which on a packed weight's rows do not depend on their number, bit by bit.
    """

    def __init__(self, weight: Tensor, for_kernels: bool = False) -> None:
        """Takes `weight` `[outputs, inputs]`; for kernels and on a GPU it stays as it is."""
        self.as_given = for_kernels or weight.is_cuda
        self.packed: bool = (
            not self.as_given
            and weight.device.type == "cpu"
            and weight.dtype is torch.float32
            and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
            and bool(torch.backends.mkldnn.enabled)
        )
        with torch.inference_mode():
            self._weight = (
                torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _EXPECTED_ROWS)
                if self.packed
                else weight.contiguous()
                if self.as_given
                else weight.t().contiguous()
            )
            self.fewest_rows = self._find_fewest_rows(weight.shape[1]) if self.packed else 1

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        if self.packed:
            product: Tensor = _packed_product(x, self._weight, None, "none", [], "")
            return product
        if self.as_given:
            return F.linear(x, self._weight)
        return x @ self._weight

    @property
    def weight(self) -> Tensor:
        """`[outputs, inputs]`, contiguous. Raises RuntimeError where it lies otherwise."""
        if not self.as_given:
            raise RuntimeError("this weight was packed or turned for the CPU; make it for kernels to read it")
        return self._weight

    def _find_fewest_rows(self, inputs: int) -> int:
        """1, or 2 where a single row's sum is split another way: that depends on shape, threads, CPU and version."""
        rows = torch.randn(_EXPECTED_ROWS, inputs, generator=torch.Generator().manual_seed(inputs))
        together, alone = self(rows), torch.cat([self(rows[row : row + 1]) for row in range(_PROBES)])
        return 1 if torch.equal(alone, together[:_PROBES]) else 2
