"""Matrix products whose rows come out the same in any batch, and fast for few rows.

On a CPU in float32 the weight is packed for oneDNN: for the few rows of a canvas or an AR step it needs half the time
of MKL, and a row's bits do not depend on the number of rows (seen for 1 to 500 rows with one and two threads on
AVX-512, torch 2.13; widths above 5,000 need 2 rows). Elsewhere the weight lies inputs first, for a plain product.
"""

from __future__ import annotations

import torch
from torch import Tensor

_EXPECTED_ROWS = 32
"""The packing is chosen for about so many rows: a canvas. Packed for 1 row, that one would take another path."""


class Linear:
    """`x @ weight.T`. Owns its copy of the weight; the one it was made from can go.

    Attributes:
        packed: whether the weight is oneDNN's, whose rows do not depend on their number.
    """

    def __init__(self, weight: Tensor) -> None:
        """Takes `weight` `[outputs, inputs]`."""
        self.packed: bool = (
            weight.device.type == "cpu"
            and weight.dtype is torch.float32
            and bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
            and bool(torch.backends.mkldnn.enabled)
        )
        with torch.inference_mode():
            self._weight = (
                torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _EXPECTED_ROWS)
                if self.packed
                else weight.t().contiguous()
            )

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        if self.packed:
            product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
            return product
        return x @ self._weight
