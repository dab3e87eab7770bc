"""Matrix products whose rows come out the same in any batch, and fast for few rows.

On a CPU in float32 there are two forms. MKL's plain product, weight inputs first, is the fast one on Intel's CPUs: a
forward's products of 1 to 64 rows take 0.4 to 0.6 of the time of the other form. oneDNN's, with a packed weight, needs
half of MKL's time elsewhere (AMD EPYC). A row's bits depend on the number of rows below a few in both, and for some
shapes in one of them for any number; so both are tried on the weight itself, the fast one first.
On a GPU the weight stays as checkpoints have it, outputs first.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from engine.machine import cpu_name

# Named with its overload, which otherwise is searched for at every call.
_packed_product = torch.ops.mkldnn._linear_pointwise.default

_EXPECTED_ROWS = 32
"""The packing is chosen for about so many rows: a canvas. Packed for 1 row, that one would take another path."""

_TRIED_ROWS = 256
_TRIED_WORK = 1 << 28
"""Products of so many rows are compared with products of few, for large weights of as many as this work allows."""

_FEWEST_ROWS = (1, 2, 4, 8)


class ProductRows(NamedTuple):
    """What is known of the rows of a product, or of all products of a model.

    Attributes:
        fewest: rows from which on a row's bits do not depend on their number, where that was tried (float32 on a
            CPU), else None.
        compiled: whether code is made for every number of rows, as by oneDNN, before the first product of so many.
    """

    fewest: int | None = None
    compiled: bool = False


UNKNOWN_ROWS = ProductRows()


def rows_of_all(products: Iterable[ProductRows]) -> ProductRows:
    """What holds for all of them."""
    each = list(products)
    tried = [one.fewest for one in each if one.fewest is not None]
    return ProductRows(max(tried) if len(tried) == len(each) else None, any(one.compiled for one in each))


class Linear:
    """`x @ weight.T`. Owns its copy of the weight; the one it was made from can go.

    Attributes:
        rows: of `x`, see `ProductRows`.
    """

    def __init__(self, weight: Tensor, for_kernels: bool = False) -> None:
        """Takes `weight` `[outputs, inputs]`; for kernels and on a GPU it stays as it is."""
        self._as_given = for_kernels or weight.is_cuda
        self._packed = False
        self.rows = UNKNOWN_ROWS
        with torch.inference_mode():
            if self._as_given:
                self._weight = weight.contiguous()
            elif weight.device.type == "cpu" and weight.dtype is torch.float32:
                self._choose_form(weight)
            else:
                self._weight = weight.t().contiguous()

    def __call__(self, x: Tensor) -> Tensor:
        """`x` `[rows, inputs]` to `[rows, outputs]`."""
        if self._packed:
            product: Tensor = _packed_product(x, self._weight, None, "none", [], "")
            return product
        if self._as_given:
            return F.linear(x, self._weight)
        return x @ self._weight

    @property
    def weight(self) -> Tensor:
        """`[outputs, inputs]`, contiguous. Raises RuntimeError where it lies otherwise."""
        if not self._as_given:
            raise RuntimeError("this weight was packed or turned for the CPU; make it for kernels to read it")
        return self._weight

    def _choose_form(self, weight: Tensor) -> None:
        """The fast form, unless only the other one keeps a row's bits; without either, rows are padded to eight."""
        forms = _forms()
        for packed in (*forms, forms[0]):
            self._packed, self._weight = packed, weight  # lets go of the form before
            self._weight = _pack(weight) if packed else weight.t().contiguous()
            self.rows = ProductRows(self._find_fewest_rows(*weight.shape), packed)
            if self.rows.fewest is not None:
                return

    def _find_fewest_rows(self, outputs: int, inputs: int) -> int | None:
        """Shape, threads, CPU and version of the library decide from how many rows on a row keeps its bits, if ever."""
        many = max(_EXPECTED_ROWS, min(_TRIED_ROWS, _TRIED_WORK // (outputs * inputs)))
        rows = torch.randn(many, inputs, generator=torch.Generator().manual_seed(inputs))
        together = self(rows)
        for fewest in _FEWEST_ROWS:
            spans = [(start, start + fewest) for start in range(0, 4 * fewest, fewest)] + [(0, _EXPECTED_ROWS)]
            if all(torch.equal(self(rows[start:end]), together[start:end]) for start, end in spans):
                return fewest
        return None


@lru_cache(maxsize=1)
def _forms() -> tuple[bool, ...]:
    """Whether to pack, the fast form first. By the CPU's name, not its pace: the same on every start."""
    if not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):  # type: ignore[no-untyped-call]
        return (False,)
    return (False, True) if "Intel" in cpu_name() else (True, False)


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _EXPECTED_ROWS)
    return packed
