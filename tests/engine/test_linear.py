"""Products whose rows do not depend on their number: what makes an answer the same alone and in any batch."""

import pytest
import torch
import torch.nn.functional as F

from engine.model.linear import Linear, ProductRows, rows_of_all


@pytest.mark.parametrize(
    ("outputs", "inputs"),
    [(384, 256), (1536, 256), (256, 768), (160, 96), (96, 128), (33, 70), (64, 1024), (64, 1536), (48, 5000)],
)
def test_rows_have_the_same_bits_in_any_batch(outputs: int, inputs: int) -> None:
    generator = torch.Generator().manual_seed(outputs)
    linear = Linear(torch.randn(outputs, inputs, generator=generator))
    rows = torch.randn(300, inputs, generator=generator)
    whole = linear(rows)
    assert linear.rows.fewest is not None
    for count in (linear.rows.fewest, 8, 13, 16, 31, 32, 33, 64, 200):
        for first in (0, 37, 100):
            assert torch.equal(linear(rows[first : first + count]), whole[first : first + count])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_product_is_that_of_the_weight(dtype: torch.dtype) -> None:
    weight, rows = torch.randn(70, 33, dtype=dtype), torch.randn(9, 33, dtype=dtype)
    expected = F.linear(rows.double(), weight.double()).to(dtype)
    torch.testing.assert_close(Linear(weight)(rows), expected)


def test_a_model_needs_the_rows_that_all_of_its_products_need() -> None:
    assert rows_of_all([ProductRows(2), ProductRows(8, compiled=True)]) == ProductRows(8, compiled=True)
    assert rows_of_all([ProductRows(2), ProductRows(4)]) == ProductRows(4)
    assert rows_of_all([ProductRows(2), ProductRows()]).fewest is None
