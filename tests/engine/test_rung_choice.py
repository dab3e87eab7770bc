"""The price of a slot: the rungs that give the most tokens per second, and the better rung where it costs nothing."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.cost_model import ForwardCost
from engine.decoding.rung_choice import (
    Ladder,
    Load,
    TokensPerForward,
    ladder_of,
    most_valuable,
    steps_down,
    throughput,
    worth_of,
)
from engine.pace_arithmetic import tokens_ahead
from engine.plan import AR, Decoding, Rung


def rung(block_length: int, tokens: float, steps: int = 1, quality: float | None = None) -> Rung:
    return Rung(Decoding.DIFFUSION, block_length, steps, expected_quality=quality, expected_tokens_per_forward=tokens)


SPECULATION = Rung(Decoding.SELF_SPECULATION, 32, 1, None, "exact", expected_tokens_per_forward=3.0)
LADDER = ladder_of((AR, SPECULATION))
LAPTOP = ForwardCost(base_s=4e-3, per_sequence_s=0.0, per_token_s=1e-4, per_context_s=0.0)


LONG = 1e6
"""Tokens of answers that are so long that their last block does not matter."""


def chosen(count: int, cost: ForwardCost = LAPTOP, ladder: Ladder = LADDER, pinned: int = 0) -> Rung:
    """What each of `count` sequences uses, beside `pinned` that are pinned to AR."""
    worth = worth_of(ladder, cost, TokensPerForward(), LONG)
    load = Load(cost.base_s + pinned * cost.own_s(1, 0), pinned)
    price = throughput({ladder: (count, 0.0)}, {ladder: worth}, load)
    return ladder.rungs[most_valuable(worth, ladder.groups[0], price)]


def test_alone_on_a_laptop_a_sequence_takes_the_long_block() -> None:
    assert chosen(1) is SPECULATION


def test_in_a_crowd_a_sequence_takes_one_slot() -> None:
    assert chosen(40) is AR


def test_beside_many_pinned_sequences_it_takes_one_slot_too() -> None:
    assert chosen(1, pinned=60) is AR


def test_where_slots_cost_nothing_the_long_block_always_wins() -> None:
    assert chosen(200, ForwardCost(6e-3, 0.0, 0.0, 0.0)) is SPECULATION


def test_where_sequences_cost_and_tokens_do_not_the_long_block_wins_in_a_crowd_too() -> None:
    assert chosen(200, ForwardCost(4e-3, 3e-4, 1e-6, 0.0)) is SPECULATION


def test_where_a_forward_costs_nothing_but_its_slots_only_tokens_per_slot_count() -> None:
    assert chosen(1, ForwardCost(1e-9, 0.0, 1e-4, 0.0)) is AR


def test_at_equal_worth_the_earlier_rung_wins() -> None:
    best, same = rung(8, 2.0, steps=8, quality=0.9), rung(8, 2.0, steps=4, quality=0.9)
    for rungs in [(best, same), (same, best)]:
        for count in (1, 50):
            assert chosen(count, ladder=ladder_of(rungs)) is rungs[0]


def test_quality_is_not_given_up_for_throughput() -> None:
    good, fast = rung(8, 1.0, 8, quality=0.9), rung(8, 8.0, 1, quality=0.8)
    assert ladder_of((fast, good)).groups == ((1,), (0,))
    for count in (1, 50):
        assert chosen(count, ladder=ladder_of((good, fast))) is good


def test_exact_rungs_are_equal_and_rungs_without_a_number_are_not() -> None:
    assert ladder_of((AR, SPECULATION, rung(8, 2.0), rung(8, 3.0, 2))).groups == ((0, 1), (2,), (3,))


def test_what_calibration_shows_to_be_as_good_as_ar_is_equal_to_it() -> None:
    measured = (replace(AR, expected_quality=0.99), replace(rung(8, 2.0, quality=0.985), within_ar=True))
    assert ladder_of((*measured, rung(8, 3.0, quality=0.985))).groups == ((0, 1), (2,))


RUNGS = st.builds(rung, st.integers(1, 32), st.floats(0.2, 12), st.integers(1, 32), st.just(0.5))
COSTS = st.builds(
    ForwardCost,
    base_s=st.floats(1e-4, 0.1),
    per_sequence_s=st.floats(0, 1e-3),
    per_token_s=st.floats(0, 1e-3),
    per_context_s=st.just(0.0),
)


@given(
    st.dictionaries(
        st.lists(RUNGS, min_size=1, max_size=4, unique_by=Rung.policy).map(tuple),
        st.integers(1, 2),
        min_size=1,
        max_size=3,
    ),
    COSTS,
    st.floats(0, 50),
    st.floats(0, 0.2),
)
def test_no_other_assignment_gives_more_tokens_per_second(
    counts: dict[tuple[Rung, ...], int], cost: ForwardCost, tokens: float, pinned_s: float
) -> None:
    meter = TokensPerForward()
    ladders = {ladder_of(rungs): (count, 0.0) for rungs, count in counts.items()}
    worth = {ladder: worth_of(ladder, cost, meter, LONG) for ladder in ladders}
    load = Load(cost.base_s + pinned_s, tokens)
    reached = throughput(ladders, worth, load)
    sequences = [ladder for ladder, (count, _) in ladders.items() for _ in range(count)]

    def rate(indices: tuple[int, ...]) -> float:
        pairs = list(zip(sequences, indices, strict=True))
        made = load.tokens + sum(worth[ladder].gained[index] for ladder, index in pairs)
        return made / (load.fixed_s + sum(worth[ladder].own_s[index] for ladder, index in pairs))

    best = max(rate(indices) for indices in itertools.product(*(range(len(item.rungs)) for item in sequences)))
    assert reached == pytest.approx(best, rel=1e-5)


FAST, FASTEST = rung(16, 8.0, 1, quality=0.6), rung(32, 16.0, 1, quality=0.5)
TIMED = ladder_of((AR, SPECULATION, FAST, FASTEST))


def order(price: float, first_group: int = 0) -> list[Rung]:
    worth = worth_of(TIMED, LAPTOP, TokensPerForward(), LONG)
    return [TIMED.rungs[step.rung] for step in steps_down(TIMED, worth, price, first_group)]


def test_steps_begin_at_what_is_worth_most_and_go_through_the_quality_before_they_leave_it() -> None:
    assert order(price=2000.0) == [AR, SPECULATION, FAST, FASTEST]


def test_small_blocks_stay_a_step_for_short_answers_and_what_is_never_sooner_is_none() -> None:
    assert order(price=0.0) == [SPECULATION, AR, FAST, FASTEST]
    # 16 slots at nearly the rate of 32 waste less of a last block; 32 slots of two tokens a forward waste most.
    ladder = ladder_of((rung(32, 3.0, 31, 0.9), rung(16, 2.9, 15, 0.9), rung(32, 2.0, 31, 0.9)))
    worth = worth_of(ladder, LAPTOP, TokensPerForward(), LONG)
    assert [step.rung for step in steps_down(ladder, worth, 0.0)] == [0, 1]


def test_steps_may_begin_at_a_lower_quality() -> None:
    assert order(price=2000.0, first_group=1) == [FAST, FASTEST]


def test_a_step_knows_what_comes_before_the_first_text_and_what_a_last_block_wastes() -> None:
    worth = worth_of(TIMED, LAPTOP, TokensPerForward(), LONG)
    ar, speculation, fast, _ = steps_down(TIMED, worth, 2000.0)
    assert (ar.first_forwards, ar.rest) == (1.0, 0.0)
    # Its blocks take two forwards, however much of them the audit throws away.
    assert (speculation.first_forwards, speculation.rest) == (1.0, pytest.approx(0.5 * 2))
    assert (fast.first_forwards, fast.rest) == (2.0, pytest.approx(0.5 * 16 / 8))


def test_short_answers_waste_less_in_short_blocks() -> None:
    short, long = rung(8, 4.0, 2, quality=0.9), rung(32, 6.0, 8, quality=0.9)
    ladder, free = ladder_of((short, long)), ForwardCost(1e-3, 0.0, 0.0, 0.0)
    picks = [most_valuable(worth_of(ladder, free, TokensPerForward(), tokens), (0, 1), 0.0) for tokens in (8.0, 400.0)]
    assert picks == [0, 1]


def test_what_has_grown_longer_than_expected_is_still_expected_to_go_on() -> None:
    cases = [(10.0, 100.0), (80.0, 100.0), (70.0, 1000.0), (100.0, 100.0)]
    assert [tokens_ahead(made, 60.0, most) for made, most in cases] == [50, 20, 32, 1]


def test_the_meter_starts_from_the_calibration_and_ends_at_what_is_seen() -> None:
    meter = TokensPerForward(weight=50)
    assert meter.expected(SPECULATION) == 3.0
    for _ in range(30):
        meter.observe(SPECULATION, tokens=2, forwards=2)
    assert 1.0 < meter.expected(SPECULATION) < 3.0
    for _ in range(2000):
        meter.observe(SPECULATION, tokens=2, forwards=2)
    assert meter.expected(SPECULATION) == pytest.approx(1.0, abs=0.5)
    assert list(meter.to_dict().values()) == [pytest.approx(1.0)]


def test_the_meter_keeps_policies_apart_and_ignores_what_was_expected() -> None:
    meter = TokensPerForward()
    meter.observe(rung(8, 2.0), tokens=800, forwards=100)
    assert meter.expected(rung(8, 2.0)) > 2.5
    assert meter.expected(rung(8, 1.0)) > 2.0
    assert meter.expected(rung(9, 2.0)) == 2.0


def test_a_rung_that_nobody_measured_counts_for_what_its_budget_guarantees() -> None:
    meter = TokensPerForward()
    assert meter.expected(Rung(Decoding.DIFFUSION, 8, 4)) == 8 / 5, "four steps and a commit"
    assert meter.expected(Rung(Decoding.DIFFUSION, 8, 8)) == 1.0, "seven masks beside the seed"
    assert meter.expected(Rung(Decoding.DIFFUSION, 8, 4, None, 0.5)) == 1 / 5, "an audit may leave a single token"
    assert meter.expected(replace(SPECULATION, expected_tokens_per_forward=None)) == 1 / 2
    assert meter.expected(Rung(Decoding.AR)) == 1.0
