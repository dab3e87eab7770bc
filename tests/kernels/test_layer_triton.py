"""The small kernels of a layer against float64: in the interpreter (`interpreted_layer.py`) and in PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from kernels.activation import swiglu_torch
from kernels.norm import add_and_norm_torch
from kernels.rope_and_kv import rope_and_kv_torch
from tests.kernels.isolated import interpreted
from tests.kernels.layer_cases import double_norm, double_rope, double_swiglu, rope_case


def test_equal_float64_in_the_interpreter() -> None:
    interpreted(Path(__file__).parent / "interpreted_layer.py", least=17)


@pytest.mark.parametrize("scaled", [False, True])
def test_the_reference_of_rope_equals_float64(scaled: bool) -> None:
    case = rope_case(2, 9, 4, 2, 16, scaled, torch.float32)
    query, kv = double_rope(case)  # before the form rotates in place
    got = rope_and_kv_torch(case.projected, case.rotation, case.slots, case.kv, 4)
    torch.testing.assert_close(got[:, :4].double(), query, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(case.kv.double(), kv, atol=1e-6, rtol=1e-6)


def test_the_references_of_norm_and_swiglu_equal_float64() -> None:
    draw = torch.Generator().manual_seed(4)
    x, change, weight = torch.randn(5, 96, generator=draw), torch.randn(5, 96, generator=draw), torch.rand(96)
    total, normed = add_and_norm_torch(x, change, weight, 1e-5)
    torch.testing.assert_close(total, x + change)
    torch.testing.assert_close(normed.double(), double_norm(total, weight, 1e-5), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(swiglu_torch(x).double(), double_swiglu(x), atol=1e-6, rtol=1e-6)
