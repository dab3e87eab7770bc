"""The Triton forms of the small kernels of a layer in the interpreter: rope with K/V write, norm, SwiGLU, FP8, products
in fixed tiles and of few rows. Run by `test_layer_triton.py` in a process of its own. fp32 and fp16 only
(`interpreted_reach.py` says why)."""

from __future__ import annotations

import os

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels.activation
import kernels.fixed_product
import kernels.narrow_product
import kernels.norm
import kernels.quantize
import kernels.rope_and_kv
from kernels.activation import swiglu_triton
from kernels.fixed_product import fixed_product
from kernels.narrow_product import NARROW_ROWS, gated_product, narrow_product, split_of, tiles_of
from kernels.norm import add_and_norm_torch, add_and_norm_triton
from kernels.quantize import QuantizedRows, quantize_rows_torch, quantize_rows_triton
from kernels.rope_and_kv import Rotation, rope_and_kv_torch, rope_and_kv_triton
from tests.kernels.layer_cases import RopeCase, double_norm, double_rope, double_swiglu, rope_case
from tests.kernels.reach_cases import SENTINEL, guarded, guards

BOUND = {torch.float32: 1e-6, torch.float16: 2e-3}
TYPES = st.sampled_from([torch.float32, torch.float16])
EPS = 1e-5


def close(got: Tensor, want: Tensor) -> None:
    bound = BOUND[got.dtype]
    torch.testing.assert_close(got.double(), want, atol=bound, rtol=bound)


def made_by(module: object, monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:
    """The results that a kernel's module allocates from now on, each between guard values."""
    made: list[Tensor] = []

    def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        made.append(guarded(torch.full(shape, float("nan"), dtype=dtype)))
        return made[-1]

    def empty_like(other: Tensor) -> Tensor:
        return empty(*other.shape, dtype=other.dtype, device=other.device)

    monkeypatch.setattr(module.torch, "empty", empty)  # type: ignore[attr-defined]
    monkeypatch.setattr(module.torch, "empty_like", empty_like)  # type: ignore[attr-defined]
    return made


def test_this_process_interprets() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert os.environ["STEPDIAL_KERNELS"] == "triton"


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    tokens=st.integers(1, 6),
    heads=st.sampled_from([(4, 1), (4, 2), (12, 4), (32, 8), (3, 1)]),
    dim=st.sampled_from([16, 32, 128]),
    scaled=st.booleans(),
    dtype=TYPES,
)
def test_rope_equals_float64(
    seed: int, tokens: int, heads: tuple[int, int], dim: int, scaled: bool, dtype: torch.dtype
) -> None:
    case = rope_case(seed, tokens, *heads, dim, scaled, dtype)
    query, kv = double_rope(case)
    close(rope_and_kv_triton(case.projected, case.rotation, case.slots, case.kv, case.heads), query)
    close(case.kv, kv)


def test_rope_equals_its_reference_and_keeps_to_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    case = rope_case(5, 7, 4, 2, 32, True, torch.float32)
    twin = rope_case(5, 7, 4, 2, 32, True, torch.float32)
    want = rope_and_kv_torch(twin.projected, twin.rotation, twin.slots, twin.kv, 4)[:, :4]
    assert case.rotation.query_scale is not None
    tables = [guarded(table) for table in (case.rotation.cos, case.rotation.signed_sin, case.rotation.query_scale)]
    case = RopeCase(guarded(case.projected), Rotation(*tables), guarded(case.slots), guarded(case.kv), 4)
    made = made_by(kernels.rope_and_kv, monkeypatch)
    got = rope_and_kv_triton(case.projected, case.rotation, case.slots, case.kv, 4)
    monkeypatch.undo()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(case.kv, twin.kv)
    assert torch.equal(case.projected, rope_case(5, 7, 4, 2, 32, True, torch.float32).projected)
    for tensor in (*made, case.projected, *tables, case.slots, case.kv):
        assert (guards(tensor) == SENTINEL).all()
    assert len(made) == 1


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 5),
    hidden=st.sampled_from([1, 16, 96, 100, 1024, 3072]),
    summed=st.booleans(),
    dtype=TYPES,
)
def test_sum_and_norm_equal_float64(seed: int, rows: int, hidden: int, summed: bool, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = (3 * torch.randn(rows, hidden, generator=draw)).to(dtype)
    change = torch.randn(rows, hidden, generator=draw).to(dtype) if summed else None
    weight = (0.5 + torch.rand(hidden, generator=draw)).to(dtype)
    total, normed = add_and_norm_triton(x, change, weight, EPS)
    close(total, x.double() + change.double() if change is not None else x.double())
    close(normed, double_norm(total, weight, EPS))


def test_norm_rounds_where_its_reference_does_and_keeps_to_its_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    x, change = (guarded(torch.randn(3, 96, generator=draw).half()) for _ in range(2))
    weight = guarded(torch.rand(96, generator=draw).half())
    want = add_and_norm_torch(x, change, weight, EPS)
    made = made_by(kernels.norm, monkeypatch)
    got = add_and_norm_triton(x, change, weight, EPS)
    monkeypatch.undo()
    assert torch.equal(got[0], want[0])
    # The sum of squares may be rounded elsewhere, so one last bit may differ here and there.
    assert (got[1] != want[1]).float().mean() < 0.02
    torch.testing.assert_close(got[1], want[1], atol=0, rtol=2e-3)
    for tensor in (*made, x, change, weight):
        assert (guards(tensor) == SENTINEL).all()
    assert len(made) == 2


@settings(max_examples=15)
@given(seed=st.integers(0, 2**31), rows=st.integers(1, 4), inner=st.sampled_from([1, 24, 1024, 1100]), dtype=TYPES)
def test_swiglu_equals_float64(seed: int, rows: int, inner: int, dtype: torch.dtype) -> None:
    gate_up = (4 * torch.randn(rows, 2 * inner, generator=torch.Generator().manual_seed(seed))).to(dtype)
    close(swiglu_triton(gate_up), double_swiglu(gate_up))


def test_swiglu_keeps_to_its_tensors_and_to_finite_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    gate_up = guarded(torch.tensor([[-100.0, 100.0, 0.0, 1.0, 1.0, 1.0], [-90.0, 5.0, -5.0, 2.0, 2.0, 2.0]]))
    made = made_by(kernels.activation, monkeypatch)
    got = swiglu_triton(gate_up)
    monkeypatch.undo()
    close(got, double_swiglu(gate_up))
    for tensor in (*made, gate_up):
        assert (guards(tensor) == SENTINEL).all()
    assert len(made) == 1


@settings(max_examples=25)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 4),
    width=st.sampled_from([1, 16, 100, 5120, 8200]),
    dtype=TYPES,
)
@example(seed=192, rows=4, width=5120, dtype=torch.float32)  # rounds up to a power of two among the subnormals
def test_rows_in_fp8_equal_their_reference(seed: int, rows: int, width: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    x = (torch.randn(rows, width, generator=draw) * 10 ** torch.randint(-4, 4, (rows, 1), generator=draw)).to(dtype)
    x[0, 0] = 0.0
    got, want = quantize_rows_triton(x), quantize_rows_torch(x)
    assert torch.equal(got.scales, want.scales)
    close_in_fp8(got, want, x)


def close_in_fp8(got: QuantizedRows, want: QuantizedRows, x: Tensor) -> None:
    """Equal, but for what rounds up to a power of two, where the interpreter loses the carry and gives half of it, and
    for ties, which it rounds up instead of to even."""
    codes, expected = got.values.view(torch.uint8), want.values.view(torch.uint8)
    power_of_two = torch.frexp(want.values.float()).mantissa.abs() == 0.5
    carried = power_of_two & (want.values.float().abs() > (x.float() / want.scales).abs())
    apart = (codes.int() - expected.int()).abs()[~carried]
    assert apart.max() <= 1
    assert (apart > 0).sum() <= max(1, 0.02 * apart.numel())
    assert carried.sum() <= max(1, 0.25 * carried.numel())


def test_rows_in_fp8_keep_to_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    x = guarded(torch.randn(3, 100, generator=torch.Generator().manual_seed(7)))
    made: list[Tensor] = []

    def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        made.append(guarded(torch.zeros(shape, dtype=torch.uint8 if dtype == kernels.quantize.FP8 else dtype)))
        return made[-1].view(dtype)

    monkeypatch.setattr(kernels.quantize.torch, "empty", empty)
    got = quantize_rows_triton(x)
    monkeypatch.undo()
    close_in_fp8(got, quantize_rows_torch(x), x)
    for tensor in (*made, x):
        assert (guards(tensor) == guards(guarded(torch.zeros(1, dtype=tensor.dtype)))[0]).all()
    assert len(made) == 2


@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    rows=st.integers(1, 70),
    outputs=st.sampled_from([1, 24, 128, 200]),
    inputs=st.sampled_from([8, 64, 136]),
    dtype=TYPES,
)
def test_products_in_fixed_tiles_equal_float64(
    seed: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=draw).to(dtype) for shape in ((rows, inputs), (outputs, inputs)))
    got = fixed_product(x, weight)
    want = x.double() @ weight.double().T
    bound = BOUND[dtype] * float(want.abs().max() + 1)
    torch.testing.assert_close(got.double(), want, atol=bound, rtol=0)
    first = rows // 2
    assert torch.equal(fixed_product(x[first : first + 3], weight), got[first : first + 3])


def test_products_in_fixed_tiles_keep_to_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(2)
    x, weight = torch.randn(67, 72, generator=draw), torch.randn(130, 72, generator=draw)
    made = made_by(kernels.fixed_product, monkeypatch)
    got = fixed_product(x, weight)
    monkeypatch.undo()
    torch.testing.assert_close(got, x @ weight.T, atol=1e-4, rtol=1e-4)
    assert (guards(made[0]) == SENTINEL).all()
    assert fixed_product(x[:0], weight).shape == (0, 130)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([1, 5, 16, 17, 32, 33, 64]),
    outputs=st.sampled_from([1, 24, 128, 300]),
    inputs=st.sampled_from([8, 64, 136, 640, 1000]),
    dtype=TYPES,
)
def test_products_of_few_rows_equal_float64(
    seed: int, rows: int, outputs: int, inputs: int, dtype: torch.dtype
) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=draw).to(dtype) for shape in ((rows, inputs), (outputs, inputs)))
    arrivals = torch.zeros(tiles_of(outputs), dtype=torch.int32)
    got = narrow_product(x, weight, arrivals)
    want = x.double() @ weight.double().T
    bound = BOUND[dtype] * float(want.abs().max() + 1)
    torch.testing.assert_close(got.double(), want, atol=bound, rtol=0)
    assert not arrivals.any(), "ready for the next product"


@example(seed=218923705, rows=1, inner=1, inputs=136, dtype=torch.float32)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 2**31),
    rows=st.sampled_from([1, 5, 32, 64]),
    inner=st.sampled_from([1, 24, 64, 130]),
    inputs=st.sampled_from([8, 136]),
    dtype=TYPES,
)
def test_gated_products_equal_float64(seed: int, rows: int, inner: int, inputs: int, dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(seed)
    x, weight = (torch.randn(shape, generator=draw).to(dtype) for shape in ((rows, inputs), (2 * inner, inputs)))
    want = double_swiglu(x.double() @ weight.double().T)
    # What a product is off by, which grows as the root of its terms, is multiplied by the other product.
    factors = (x.double() @ weight.double().T).abs().max()
    bound = 2 * BOUND[dtype] * float(want.abs().max() + inputs**0.5 * (factors + 1))
    torch.testing.assert_close(gated_product(x, weight).double(), want, atol=bound, rtol=0)


def test_gated_products_round_where_the_two_passes_do() -> None:
    draw = torch.Generator().manual_seed(8)
    # Products of these are exact in any order.
    x, weight = (torch.randint(-3, 4, shape, generator=draw).half() / 8 for shape in ((9, 64), (2 * 40, 64)))
    assert torch.equal(gated_product(x, weight), swiglu_triton(x @ weight.T))


def test_inputs_are_split_where_outputs_give_too_few_programs() -> None:
    for outputs, inputs, splits in (
        (6144, 5120, 3),
        (5120, 4096, 3),
        (5120, 16_384, 3),
        (32_768, 5120, 1),
        (8, 640, 10),
    ):
        tiles = tiles_of(outputs)
        count, share = split_of(inputs, tiles)
        assert count == splits
        assert share % kernels.narrow_product.TILE_INPUTS == 0
        assert (count - 1) * share < inputs <= count * share
        assert inputs - (count - 1) * share > 0.9 * share, "nobody waits long for the others"


def test_products_of_few_rows_keep_to_their_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(3)
    x, weight = torch.randn(37, 200, generator=draw), torch.randn(130, 200, generator=draw)
    arrivals = guarded(torch.zeros(2, dtype=torch.int32))
    made = made_by(kernels.narrow_product, monkeypatch)
    got = narrow_product(x, weight, arrivals)
    gated = gated_product(x, weight)
    monkeypatch.undo()
    torch.testing.assert_close(got, x @ weight.T, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(gated.double(), double_swiglu(x.double() @ weight.double().T), atol=1e-3, rtol=0)
    assert len(made) == 3
    for tensor in (*made, arrivals):
        assert (guards(tensor) == SENTINEL).all()
    assert narrow_product(x[:0], weight, arrivals).shape == (0, 130)
    assert gated_product(x[:0], weight).shape == (0, 65)


def test_more_rows_than_a_narrow_product_takes_are_refused() -> None:
    x, weight = torch.zeros(NARROW_ROWS + 1, 8), torch.zeros(16, 8)
    for form in (gated_product, lambda x, weight: narrow_product(x, weight, torch.zeros(1, dtype=torch.int32))):
        with pytest.raises(ValueError, match="product of 65 rows; allowed: up to 64"):
            form(x, weight)
