"""The Triton denoise head in the interpreter. Run by `test_denoise_head_triton.py` in a process of its own. float32 and
float16 only: the interpreter computes bfloat16 wrongly, in silence."""

from __future__ import annotations

import os

import pytest
import torch
import triton
import triton.language as tl
from hypothesis import given, settings
from hypothesis import strategies as st

from kernels import denoise_head as module
from kernels.combine import combine, combine_torch, finish, finish_torch
from kernels.denoise_head import denoise_head, head_partials, head_partials_chunked, head_partials_fused
from kernels.noise import gumbel_noise, gumbel_tile
from kernels.row_statistics import RowRules, partials_torch
from tests.kernels.head_cases import check, random_case, random_rules, same

FORMS = [head_partials_fused, head_partials_chunked]


def test_this_process_interprets() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert os.environ["STEPDIAL_KERNELS"] == "triton"


@triton.jit
def _noise_kernel(seeds, positions, places, choices, first_id, out, ROWS: tl.constexpr, IDS: tl.constexpr):
    rows = tl.arange(0, ROWS)
    noise = gumbel_tile(
        tl.load(seeds + rows),
        tl.load(positions + rows),
        tl.load(places + rows),
        tl.load(choices + rows),
        first_id,
        ROWS,
        IDS,
    )
    tl.store(out + rows[None, :] * IDS + tl.arange(0, IDS)[:, None], noise)


def test_noise_is_the_engines() -> None:
    draw = torch.Generator().manual_seed(0)
    noise = random_rules(draw, 8, 100, 1, sampled=True).noise
    assert noise is not None
    noise.seeds[:2] = torch.tensor([-1, 0])
    got = torch.empty(8, 256)
    _noise_kernel[(1,)](noise.seeds, noise.positions, noise.places, noise.choices, 1028, got, ROWS=8, IDS=256)
    places = noise.places.long()
    want = gumbel_noise(
        noise.seeds, noise.positions.long(), places & 255, places >> 8, noise.choices.long(), 256, first_id=1028
    )
    torch.testing.assert_close(got, want, rtol=1e-6, atol=5e-7)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@settings(max_examples=10)
@given(
    seed=st.integers(0, 2**32),
    rows=st.integers(1, 7),
    vocab=st.integers(12, 700),
    size=st.sampled_from([8, 16, 64, 72, 136]),
    banned=st.integers(0, 3),
    sampled=st.booleans(),
)
def test_equals_the_rules_in_float64(
    form, dtype: torch.dtype, seed: int, rows: int, vocab: int, size: int, banned: int, sampled: bool
) -> None:
    case = random_case(seed, rows, vocab, size, banned, sampled, dtype)
    check(finish(form(case.hidden, case.weight, case.rules), case.rules), case.logits, case.rules)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("rows", "sampled"), [(1, True), (16, False), (17, True), (33, True), (33, False), (64, True), (64, False)]
)
def test_tiles_of_rows(form, rows: int, sampled: bool) -> None:
    case = random_case(rows, rows, 130, 16, sampled=sampled, dtype=torch.float16)
    check(finish(form(case.hidden, case.weight, case.rules), case.rules), case.logits, case.rules)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("shards", [1, 2, 4])
def test_shards_combine_to_the_same_answer(form, sampled: bool, shards: int) -> None:
    case = random_case(7, 5, 1040, sampled=sampled, dtype=torch.float16)
    size = 1040 // shards
    ranks = [
        combine(form(case.hidden, case.weight[first : first + size], case.rules, first), case.rules)
        for first in range(0, 1040, size)
    ]
    check(finish(torch.cat(ranks, dim=-1), case.rules), case.logits, case.rules)


@pytest.mark.parametrize("sampled", [False, True])
def test_chunks_of_a_small_scratch_change_nothing(sampled: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", 64)
    monkeypatch.setattr(module, "SCRATCH_ELEMENTS", 400)
    case = random_case(11, 3, 333, sampled=sampled)
    partials = head_partials_chunked(case.hidden, case.weight, case.rules)
    assert partials.shape == (case.rules.fields, 3, 6)
    check(finish(partials, case.rules), case.logits, case.rules)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("parts", [1, 3, 16, 100])
def test_merging_equals_its_reference(sampled: bool, parts: int) -> None:
    """Parts with empty ones among them, in any order."""
    case = random_case(parts, 4, 16 * parts, 16, sampled=sampled)
    case.weight[:16] = float("-inf")
    case.hidden[:] = case.hidden.abs() + 1
    logits = case.hidden @ case.weight.T
    pieces = [partials_torch(logits[:, first : first + 16], first, case.rules) for first in range(0, 16 * parts, 16)]
    order = torch.randperm(parts, generator=torch.Generator().manual_seed(1))
    partials = torch.cat(pieces, dim=-1)[..., order].contiguous()
    torch.testing.assert_close(
        combine(partials, case.rules), combine_torch(partials, case.rules), rtol=1e-5, atol=1e-5, equal_nan=True
    )
    same(finish(partials, case.rules), finish_torch(partials, case.rules))


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_broken_rows_say_so_and_leave_the_others_alone(form, sampled: bool) -> None:
    """A row of NaN, and one whose logits are too large for float16, +inf and -inf."""
    case = random_case(4, 6, 300, 8, sampled=sampled, dtype=torch.float16)
    case.hidden[0] = float("nan")
    case.hidden[1] = 60000.0
    logits = (case.hidden.float() @ case.weight.float().T).half().float()
    assert logits[1].isposinf().any()
    assert logits[1].isneginf().any()
    got = finish(form(case.hidden, case.weight, case.rules), case.rules)
    same(got, finish_torch(partials_torch(logits, 0, case.rules), case.rules))
    assert got.confidence.isnan().tolist() == [True, True, False, False, False, False]
    for row in (0, 1):
        excluded = {case.rules.mask_id, *case.rules.banned[row].tolist()}
        large = [token for token in range(300) if not logits[row, token] < float("inf") and token not in excluded]
        assert got.tokens[row] == large[0]


@pytest.mark.parametrize("form", FORMS)
def test_a_row_of_minus_infinities_has_the_lowest_id(form) -> None:
    hidden, weight = torch.ones(2, 8, dtype=torch.float16), torch.full((40, 8), float("-inf"), dtype=torch.float16)
    rules = RowRules(3, torch.tensor([[-1], [0]]), torch.tensor([1, -1]))
    got = finish(form(hidden, weight, rules), rules)
    assert got.tokens.tolist() == [0, 0]


def test_the_switch_leads_here_and_shards_start_at_groups_of_four() -> None:
    case = random_case(5, 3, 50, sampled=True)
    check(denoise_head(case.hidden, case.weight, case.rules), case.logits, case.rules)
    with pytest.raises(ValueError, match="starts at token id 50"):
        head_partials(case.hidden, case.weight, case.rules, 50)
    none = random_case(5, 0, 50, sampled=True)
    assert denoise_head(none.hidden, none.weight, none.rules).tokens.shape == (0,)


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 64, 65, 130])
def test_fixed_tiles_are_right_and_let_no_row_depend_on_the_others(rows: int, sampled: bool) -> None:
    case = random_case(3, rows, 140, 16, banned=2, sampled=sampled, dtype=torch.float16)
    partials = head_partials(case.hidden, case.weight, case.rules, fixed=True)
    assert partials.shape[1] == rows
    if rows == 0:
        return
    check(finish(partials, case.rules), case.logits, case.rules)
    for part in (slice(0, 1), slice(rows // 2, rows // 2 + 5)):
        alone = head_partials(case.hidden[part], case.weight, case.rules.part(part), fixed=True)
        assert torch.equal(alone, partials[:, part])
