"""The Triton form of reach attention in the interpreter. Run by `test_reach_triton.py` in a process of its own, because
TRITON_INTERPRET is read when a kernel is decorated. fp32 and fp16 only: the interpreter multiplies bf16 as patterns of
bits.
"""

from __future__ import annotations

import itertools
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import kernels.reach_attention as module
from kernels.reach_attention import reach_attention_reference, reach_attention_triton
from kernels.reach_work import ReachWork, SplitRule, Tiles, WorkSizes, tiles_for
from tests.kernels.reach_cases import SENTINEL, Case, Part, case, expected, guarded, guards

SCALE = 0.25
SMALL = Tiles(rows=32, keys=32, warps=4, stages=2)
"""Eight tokens with four heads a K/V head: several tiles and splits in batches that are small."""
RULE = SplitRule(keys=64)
BOUND = {torch.float32: 3e-6, torch.float16: 3e-3}

CANVAS = Part(96, 32, causal=False)
SINGLE = Part(130, 1, causal=True)
CHUNK = Part(40, 21, causal=True)


def check(batch: Case, tiles: Tiles = SMALL, rule: SplitRule = RULE) -> Tensor:
    work = batch.work(tiles, rule)
    got = reach_attention_triton(batch.query, batch.kv, work, batch.heads, SCALE)
    assert got.dtype is batch.query.dtype
    bound = BOUND[batch.query.dtype]
    torch.testing.assert_close(got.double(), expected(batch, SCALE), atol=bound, rtol=bound)
    return got


def test_this_process_interprets() -> None:
    assert os.environ["TRITON_INTERPRET"] == "1"
    assert os.environ["STEPDIAL_KERNELS"] == "triton"


PARTS = st.builds(
    Part,
    start=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 65, 127, 150])),
    rows=st.one_of(st.integers(1, 12), st.sampled_from([16, 31, 32, 33])),
    causal=st.booleans(),
)


@settings(max_examples=20)
@given(
    seed=st.integers(0, 2**31),
    parts=st.lists(PARTS, min_size=1, max_size=4),
    dtype=st.sampled_from([torch.float32, torch.float16]),
    shape=st.sampled_from([(4, 1), (4, 2), (2, 2), (3, 1)]),
    page_size=st.sampled_from([8, 32]),
    padding=st.integers(0, 9),
    rule=st.sampled_from([RULE, SplitRule(64, small_tiles=False), SplitRule()]),
)
def test_equals_a_float64_loop_on_ragged_batches(
    seed: int,
    parts: list[Part],
    dtype: torch.dtype,
    shape: tuple[int, int],
    page_size: int,
    padding: int,
    rule: SplitRule,
) -> None:
    heads, kv_heads = shape
    batch = case(seed, parts, dtype, heads, kv_heads, page_size=page_size, padding=padding)
    check(batch, rule=rule)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize(
    "parts",
    [
        [Part(0, 1, True)],
        [Part(0, 1, False)],
        [Part(4, 3, True)],
        [Part(31, 1, True)],
        [Part(32, 1, True)],
        [Part(28, 8, True)],
        [Part(31, 32, False)],
        [Part(32, 32, False)],
        [Part(250, 7, True)],
        [Part(256, 1, False)],
        [CHUNK, CANVAS, SINGLE],
    ],
    ids=[
        "one row",
        "a canvas of one",
        "reach inside a page",
        "reach at a page border",
        "reach one past a page border",
        "reaches around a page border",
        "canvas over two pages, last page ragged",
        "canvas on a page",
        "several splits, last one ragged",
        "last split of one key",
        "prefill chunk, canvas, single token",
    ],
)
def test_edge_shapes(parts: list[Part], dtype: torch.dtype) -> None:
    check(case(7, parts, dtype, padding=3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_the_tiles_of_the_engine(dtype: torch.dtype) -> None:
    """The sizes that run on a GPU, with the head size and heads per K/V head of the released checkpoints."""
    batch = case(11, [Part(600, 32, False), Part(70, 9, True), Part(530, 1, True)], dtype, dim=128, padding=2)
    work = batch.work(tiles_for(dtype), SplitRule())
    assert work.merges.any()
    got = reach_attention_triton(batch.query, batch.kv, work, 4, 128**-0.5)
    torch.testing.assert_close(got.double(), expected(batch, 128**-0.5), atol=2e-3, rtol=2e-3)


def test_more_splits_than_the_merge_reads_at_once() -> None:
    """The highest score lies in the first splits, then in the last ones, so that both sides are rescaled."""
    batch = case(29, [Part(1100, 2, True), Part(1060, 1, True)], torch.float32, heads=2)
    for part, own, loud in zip(batch.parts, batch.pages, (40, 1055), strict=True):
        token = 0 if part.start == 1100 else 2
        batch.kv[own[loud // 32] * 32 + loud % 32, 0, 0] = batch.query[token, 0]
    assert batch.work(SMALL, SplitRule(32)).merges[:, 3].max() > module._MERGED_AT_ONCE
    check(batch, rule=SplitRule(32))


def test_partial_results_in_float16_hold_sums_that_no_float16_does() -> None:
    batch = case(31, [Part(500, 3, True), CANVAS], torch.float16)
    size = 1e4
    values = batch.kv[:, 1]
    values *= size
    # The weights of a split's keys are nearly alike: their sum is as many times a value.
    batch.query *= 0.01
    work = batch.work(SMALL, RULE)
    assert not work.exact
    assert work.merges.any()
    got = reach_attention_triton(batch.query, batch.kv, work, batch.heads, SCALE).double() / size
    torch.testing.assert_close(got, expected(batch, SCALE) / size, atol=2e-3, rtol=2e-3)


def test_equals_its_reference() -> None:
    batch = case(3, [CHUNK, CANVAS, SINGLE, Part(200, 1, True)], torch.float32, heads=4, kv_heads=2, padding=5)
    work = batch.work(SMALL, RULE)
    got = reach_attention_triton(batch.query, batch.kv, work, 4, SCALE)
    torch.testing.assert_close(got, reach_attention_reference(batch.query, batch.kv, work, 4, SCALE))


def test_queries_may_have_their_keys_behind_them() -> None:
    batch = case(5, [CHUNK, SINGLE], torch.float32)
    wide = torch.cat((batch.query, torch.full((batch.tokens, 2, 16), float("nan"))), dim=1)
    work = batch.work(SMALL, RULE)
    assert torch.equal(
        reach_attention_triton(wide, batch.kv, work, 4, SCALE),
        reach_attention_triton(batch.query, batch.kv, work, 4, SCALE),
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_fixed_rule_makes_a_row_independent_of_its_batch_and_of_its_chunks(dtype: torch.dtype) -> None:
    """Bitwise: alone or beside others, in one chunk of a prompt or in three, in exact or padded arrays."""
    rule = SplitRule(keys=64, small_tiles=False)
    whole = case(13, [Part(60, 40, True)], dtype)
    together = check(whole, rule=rule)
    token = 0
    for rows in (3, 9, 28):
        chunk = replace(whole, parts=[Part(60 + token, rows, True)], query=whole.query[token : token + rows])
        assert torch.equal(check(chunk, rule=rule), together[token : token + rows])
        token += rows
    others = [Part(5, 8, False), Part(190, 1, True)]
    crowd = case(14, [*others, Part(60, 40, True)], dtype)
    crowd.query[9:] = whole.query
    for own, other in zip(crowd.pages[2], whole.pages[0], strict=True):
        crowd.kv[own * 32 : own * 32 + 32] = whole.kv[other * 32 : other * 32 + 32]
    assert torch.equal(check(crowd, rule=rule)[9:], together)


def test_a_bucket_changes_no_bit() -> None:
    batch = case(17, [CHUNK, CANVAS, SINGLE], torch.float32)
    plain = reach_attention_triton(batch.query, batch.kv, batch.work(SMALL, RULE), 4, SCALE)
    padded = batch.work(SMALL, RULE, [WorkSizes(items=40, merges=64, pages=24, partial_rows=400)])
    assert [len(array) for array in padded.arrays()] == [batch.tokens, 40, 64, 24]
    assert torch.equal(reach_attention_triton(batch.query, batch.kv, padded, 4, SCALE), plain)


def test_writes_nothing_outside_its_tensors_and_reads_no_slot_without_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor lies between sentinels, slots without text hold inf and partial results begin as NaN."""
    batch = case(19, [CHUNK, CANVAS, SINGLE], torch.float32, heads=4, kv_heads=2, padding=4)
    made: list[Tensor] = []

    def empty(*shape: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        made.append(guarded(torch.full(shape, float("nan"), dtype=dtype)))
        return made[-1]

    work = batch.work(SMALL, RULE)
    arrays = [array.clone() for array in work.arrays()]
    around = [guarded(array) for array in work.arrays()]
    work = work.with_arrays(tuple(around))
    query = guarded(batch.query)
    kv_before, query_before = batch.kv.clone(), query.clone()
    monkeypatch.setattr(module.torch, "empty", empty)
    got = reach_attention_triton(query, batch.kv, work, 4, SCALE)
    monkeypatch.undo()
    torch.testing.assert_close(got.double(), expected(batch, SCALE), atol=3e-6, rtol=3e-6)
    assert len(made) == 3
    for tensor in (*made, *around, query, batch.kv):
        assert (guards(tensor) == SENTINEL).all()
    assert torch.equal(batch.kv, kv_before)
    assert torch.equal(query, query_before)
    for before, array in zip(arrays, around, strict=True):
        assert torch.equal(before, array)


def test_work_is_a_partition() -> None:
    """Every row's keys are covered once, and merges name the partial rows of their splits."""
    batch = case(23, [CHUNK, CANVAS, SINGLE, Part(300, 2, True)], torch.float32, padding=3)
    work: ReachWork = batch.work(SMALL, RULE)
    covered: dict[int, list[tuple[int, int, int]]] = {}
    for _, first_row, rows, first_key, key_end, least, partial, _ in work.items.tolist():
        for row in range(first_row, first_row + rows):
            assert least <= int(work.reach[row])
            at = partial + row - first_row if partial >= 0 else -1
            covered.setdefault(row, []).append((first_key, key_end, at))
    merges = {row: (first, step, splits) for row, first, step, splits in work.merges.tolist() if splits}
    used: set[int] = set()
    for row in range(batch.tokens):
        spans = sorted(covered[row])
        assert spans[0][0] == 0
        assert all(before[1] == after[0] for before, after in itertools.pairwise(spans))
        assert spans[-1][1] >= int(work.reach[row])
        if len(spans) == 1:
            assert row not in merges
            assert spans[0][2] == -1
        else:
            first, step, splits = merges[row]
            places = [first + index * step for index in range(splits)]
            assert places == [at for _, _, at in spans]
            assert used.isdisjoint(places)
            assert max(places) < work.partial_rows
            used |= set(places)
