"""Rows in FP8: what the format can hold, and how far from the row it is."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels.quantize import FP8, LARGEST, quantize_rows_torch


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 5), width=st.integers(1, 200), magnitude=st.integers(-6, 6))
def test_a_row_is_within_a_sixteenth_of_itself(seed: int, rows: int, width: int, magnitude: int) -> None:
    x = torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 10.0**magnitude
    quantized = quantize_rows_torch(x)
    assert (quantized.values.dtype, quantized.scales.shape) == (FP8, (rows, 1))
    torch.testing.assert_close(quantized.scales[:, 0], x.abs().amax(1) / LARGEST)
    # 3 bits of mantissa: half a step is 1/16 of a number, and below the smallest normal one half of 2**-9 scales.
    bound = torch.maximum(x.abs() / 16, quantized.scales * 2.0**-10) * (1 + 1e-5)
    assert ((quantized.restored(torch.float32) - x).abs() <= bound).all()


def test_zeros_stay_zeros_and_large_numbers_finite() -> None:
    x = torch.tensor([[0.0, 0.0, 0.0], [3e38, -1.0, 0.0], [-1e-30, 1e-30, 0.0]])
    restored = quantize_rows_torch(x).restored(torch.float32)
    assert restored.isfinite().all()
    assert (restored[0] == 0).all()
    torch.testing.assert_close(restored[1, 0], x[1, 0])
