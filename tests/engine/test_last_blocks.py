"""The block that what is left of an answer is made with: as cheap as any, and never for more forwards."""

from __future__ import annotations

from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.answer_lengths import NOTHING_SEEN
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.decoding.last_blocks import LEAST_SEEN, WORTH_IT, Blocks, blocks_of, next_block
from engine.decoding.rung_choice import Load, TokensPerForward, ladder_of, most_valuable, throughput, worth_of
from engine.engine import Engine
from engine.outlook import STEADY, VIEW_HOLDS, NextBlock, Outlook
from engine.plan import AR, Decoding, Plan, Rung, diffusion, self_speculation
from engine.request import GenerationOptions
from engine.sequence import Sequence
from tests.engine.serving import PROMPTS, answer, ask, load

LAPTOP = ForwardCost(base_s=2e-3, per_sequence_s=1e-4, per_token_s=6.5e-5, per_context_s=0.0)
LENGTHS = (8, 16, 32)
DRAFTS = tuple(replace(self_speculation(length), expected_tokens_per_forward=length / 2) for length in LENGTHS)
"""All of every draft is kept."""
LADDER = ladder_of(DRAFTS)


def blocks_for(clients: int, cost: ForwardCost = LAPTOP) -> tuple[Blocks, int]:
    """The blocks of `LADDER` among so many equal sequences, and the rung for the long run."""
    worth = worth_of(LADDER, cost, TokensPerForward(), 1e6)
    price = throughput({LADDER: (clients, 0.0)}, {LADDER: worth}, Load(cost.base_s, 0.0))
    return blocks_of(LADDER, worth, price), most_valuable(worth, LADDER.groups[0], price)


def chosen(clients: int, seen: list[int], made: int, most: int) -> int:
    """The length of the next block."""
    blocks, base = blocks_for(clients)
    return LENGTHS[next_block(blocks, 0, base, np.array(seen, dtype=np.float64), made, most)]


def walked(first: int, base: int, left: int) -> list[int]:
    """The blocks' lengths until so many tokens are made, step by step."""
    taken = [first]
    while sum(taken) < left:
        taken.append(base)
    return taken


@given(
    st.lists(st.integers(1, 200), min_size=LEAST_SEEN, max_size=64),
    st.integers(1, 199),
    st.sampled_from([1, 2, 4, 16, 64]),
)
def test_it_costs_no_more_than_any_other_and_takes_no_more_forwards(seen: list[int], made: int, clients: int) -> None:
    """Against answers walked block by block, on the cost of a forward and its share of the base alone."""
    lefts = [tokens - made for tokens in seen if tokens > made]
    able: tuple[int, ...] = LENGTHS
    if len(lefts) < LEAST_SEEN:
        lefts = [200 - made]
        able = tuple(length for length in LENGTHS if length >= lefts[0])
    base = LENGTHS[blocks_for(clients)[1]]

    def seconds(first: int) -> float:
        forward_s = {length: LAPTOP.own_s(length, 0) + LAPTOP.base_s / clients for length in LENGTHS}
        return mean(sum(2 * forward_s[length] for length in walked(first, base, left)) for left in lefts)

    def forwards(first: int) -> float:
        return mean(2 * len(walked(first, base, left)) for left in lefts)

    first = chosen(clients, seen, made, 200)
    as_soon = [length for length in {base, *able} if forwards(length) <= forwards(base) * (1 + 1e-9)]
    assert first in as_soon
    assert seconds(first) <= min(seconds(length) for length in as_soon) / (1 - WORTH_IT) + 1e-12


def test_the_share_of_the_base_is_what_equal_sequences_pay_each() -> None:
    for clients in (1, 7, 64):
        blocks, _ = blocks_for(clients)
        expected = [2 * (LAPTOP.own_s(length, 0) + LAPTOP.base_s / clients) for length in LENGTHS]
        assert blocks.table[3] == pytest.approx(expected)


@pytest.mark.parametrize(("left", "length"), [(1, 8), (8, 8), (9, 16), (16, 16), (17, 32), (32, 32)])
def test_no_block_is_longer_than_what_an_answer_may_still_have(left: int, length: int) -> None:
    assert chosen(1, [], 200 - left, 200) == length


def test_answers_that_were_short_make_short_blocks() -> None:
    assert chosen(1, [2, 5, 8, 10, 12, 14, 15] * 3, 1, 128) == 16
    assert chosen(1, [2, 5, 8, 10, 12, 14, 15, 30, 31] * 3, 1, 128) == 32


def test_of_a_long_rest_the_base_takes_the_next_block() -> None:
    """Also where a shorter one would fit in between: what it saves is a small share, and can be had later."""
    assert chosen(1, [], 1, 4096) == 32
    assert chosen(1, [3000 + 32 * one + 8 for one in range(30)], 1, 4096) == 32


def test_between_here_and_a_known_end_the_odd_part_is_made_first() -> None:
    assert chosen(1, [1 + 3 * 32 + 8] * 20, 1, 128) == 8
    assert chosen(1, [], 1, 1 + 3 * 32 + 8) == 32, "not where it may end before"


def test_few_answers_say_nothing() -> None:
    assert chosen(1, [5] * (LEAST_SEEN - 1), 1, 128) == 32
    assert chosen(1, [5] * LEAST_SEEN, 1, 128) == 8
    assert chosen(1, [5] * 64, 5, 128) == 32, "this one is longer than all"


def test_where_an_audit_cuts_blocks_the_rest_is_not_taken_to_fit_into_one() -> None:
    rungs = tuple(replace(self_speculation(length), expected_tokens_per_forward=2.0) for length in (8, 32))
    ladder = ladder_of((replace(AR, expected_tokens_per_forward=1.0), *rungs))
    worth = worth_of(ladder, LAPTOP, TokensPerForward(), 1e6)
    price = throughput({ladder: (40, 0.0)}, {ladder: worth}, Load(LAPTOP.base_s, 0.0))
    base = most_valuable(worth, ladder.groups[0], price)
    assert ladder.rungs[base].block_length == 1
    assert next_block(blocks_of(ladder, worth, price), 0, base, NOTHING_SEEN, 180, 200) == base


def test_single_tokens_are_no_blocks_to_end_with() -> None:
    ladder = ladder_of((replace(AR, expected_tokens_per_forward=1.0), *DRAFTS))
    worth = worth_of(ladder, LAPTOP, TokensPerForward(), 1e6)
    price = throughput({ladder: (1, 0.0)}, {ladder: worth}, Load(LAPTOP.base_s, 0.0))
    assert next_block(blocks_of(ladder, worth, price), 0, 3, NOTHING_SEEN, 199, 200) == 1


def test_other_qualities_are_left_alone() -> None:
    """A shorter block of diffusion is another text, and another quality."""
    lossy = replace(diffusion(8, 1), expected_quality=0.8, expected_tokens_per_forward=4.0)
    best = replace(DRAFTS[2], expected_quality=0.99)
    ladder = ladder_of((best, lossy))
    worth = worth_of(ladder, LAPTOP, TokensPerForward(), 1e6)
    assert next_block(blocks_of(ladder, worth, 1000.0), 0, 0, NOTHING_SEEN, 195, 200) == 0


def drafted(seen: list[int], slo_ms: float | None, max_tokens: int) -> list[tuple[int, int]]:
    """Where which blocks began in an answer to a request that may end by itself but does not."""
    engine = load()
    for tokens in seen:
        engine.core.outlook.lengths.observe(tokens, max_tokens)
    fields = {"max_tokens": max_tokens, "min_tokens": max_tokens, "temperature": 0, "latency_slo_ms": slo_ms}
    one = answer(engine, [(PROMPTS[3], fields)], Plan(ladder=DRAFTS))[0]
    ar = ask(engine, PROMPTS[3], decoding="ar", max_tokens=max_tokens, min_tokens=max_tokens, temperature=0)
    assert one.token_ids == ar.token_ids
    return [(entry.from_token, entry.rung.block_length) for entry in one.report.plan]


def test_the_engine_ends_answers_with_blocks_that_fit_and_the_tokens_are_ar_s() -> None:
    assert drafted([], None, 12)[0] == (0, 16)
    assert drafted([9] * 20, None, 100)[0] == (0, 8)
    assert drafted([9] * 20, 60_000, 100)[0] == drafted([], 60_000, 12)[0] == (0, 32), "deadlines reckon with it"


def test_blocks_that_were_chosen_for_an_end_do_not_count_for_what_is_kept_of_one() -> None:
    """A last block holds what was left, however much more would have been kept of another."""
    engine = load()
    for _ in range(LEAST_SEEN):
        engine.core.outlook.lengths.observe(41, 100)
    fields = {"max_tokens": 100, "min_tokens": 41, "temperature": 0}
    one = answer(engine, [(PROMPTS[3], fields)], Plan(ladder=DRAFTS))[0]
    assert {entry.rung.block_length for entry in one.report.plan} > {32}
    assert list(engine.core.outlook.meter.to_dict()) == [str(DRAFTS[2].policy())]


def sequences_of(engine: Engine, count: int, **fields: Any) -> list[Sequence]:
    options = GenerationOptions(max_tokens=64, **fields)
    return [engine.intake.sequence(f"{one}", [5, 6, 7], options, Plan(ladder=DRAFTS), 0.0) for one in range(count)]


def test_a_view_holds_while_nobody_comes_or_goes_and_the_cost_of_a_forward_stays(golden_engine: Engine) -> None:
    outlook = Outlook(ForwardCostModel(prior=LAPTOP), 256)
    two = sequences_of(golden_engine, 2)
    first = outlook.view(two, 0.0)
    assert all(outlook.view(two[:], 0.0) is first for _ in range(VIEW_HOLDS - 1))
    second = outlook.view(two, 0.0)
    assert second is not first
    one = outlook.view(two[:1], 0.0)
    assert one is not second
    assert outlook.view(two[:1], 0.0) is one
    outlook.cost_model = ForwardCostModel(prior=replace(LAPTOP, per_token_s=LAPTOP.per_token_s * (1 + 2 * STEADY)))
    assert outlook.view(two[:1], 0.0) is not one


def test_a_view_with_deadlines_is_made_anew(golden_engine: Engine) -> None:
    outlook = Outlook(ForwardCostModel(prior=LAPTOP), 256)
    timed = sequences_of(golden_engine, 1, latency_slo_ms=1000.0)
    assert outlook.view(timed, 0.0) is not outlook.view(timed, 0.0)


def test_the_rung_of_a_ladder_of_one_quality_each_is_what_is_asked_for(golden_engine: Engine) -> None:
    rungs = (
        Rung(Decoding.DIFFUSION, 32, 8, expected_quality=0.9, expected_tokens_per_forward=4.0),
        Rung(Decoding.DIFFUSION, 8, 1, expected_quality=0.8, expected_tokens_per_forward=4.0),
    )
    outlook = Outlook(ForwardCostModel(prior=LAPTOP), 256)
    short = golden_engine.intake.sequence("short", [5], GenerationOptions(max_tokens=4), Plan(ladder=rungs), 0.0)
    assert outlook.next_blocks([short], outlook.view([short], 0.0)) == {short: NextBlock(rungs[0])}
