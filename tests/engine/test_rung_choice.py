"""The price of a slot: the rungs that give the most tokens per second, and the better rung where it costs nothing."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.decoding.rung_choice import Load, TokensPerForward, choose_rungs
from engine.plan import AR, Decoding, Rung

Ladder = tuple[Rung, ...]


def rung(block_length: int, tokens: float, steps: int = 1) -> Rung:
    return Rung(Decoding.DIFFUSION, block_length, steps, expected_tokens_per_forward=tokens)


SPECULATION = Rung(Decoding.SELF_SPECULATION, 32, 1, None, "exact", expected_tokens_per_forward=3.0)
LADDER: Ladder = (AR, SPECULATION)
LAPTOP = {"fixed_s": 4e-3, "slot_s": 1e-4}


def chosen(count: int, **load: float) -> Rung:
    ladder = LADDER
    index = choose_rungs({ladder: count}, Load(**{"tokens": 0, "slots": 0, **load}), TokensPerForward())[ladder]
    return ladder[index]


def test_alone_on_a_laptop_a_sequence_takes_the_long_block() -> None:
    assert chosen(1, **LAPTOP) is SPECULATION


def test_in_a_crowd_a_sequence_takes_one_slot() -> None:
    assert chosen(40, **LAPTOP) is AR


def test_beside_many_pinned_sequences_it_takes_one_slot_too() -> None:
    assert chosen(1, **LAPTOP, tokens=60, slots=60) is AR


def test_where_slots_cost_nothing_the_long_block_always_wins() -> None:
    assert chosen(200, fixed_s=6e-3, slot_s=0.0) is SPECULATION


def test_where_a_forward_costs_nothing_but_its_slots_only_tokens_per_slot_count() -> None:
    assert chosen(1, fixed_s=1e-9, slot_s=1e-4) is AR


def test_at_equal_worth_the_earlier_rung_wins() -> None:
    best, same = rung(8, 2.0, steps=8), rung(8, 2.0, steps=4)
    for ladder in [(best, same), (same, best)]:
        for count in (1, 50):
            choice = choose_rungs({ladder: count}, Load(4e-3, 1e-4, 0, 0), TokensPerForward())
            assert ladder[choice[ladder]] is ladder[0]


def throughput(worth: list[tuple[float, float]], load: Load) -> float:
    tokens = load.tokens + sum(gained for gained, _ in worth)
    return tokens / (load.fixed_s + load.slot_s * (load.slots + sum(used for _, used in worth)))


RUNGS = st.builds(rung, st.integers(1, 32), st.floats(0.2, 12), st.integers(1, 32))


@given(
    st.dictionaries(
        st.lists(RUNGS, min_size=1, max_size=4, unique_by=Rung.policy).map(tuple),
        st.integers(1, 2),
        min_size=1,
        max_size=3,
    ),
    st.builds(
        Load,
        fixed_s=st.floats(1e-4, 0.1),
        slot_s=st.floats(0, 1e-3),
        tokens=st.floats(0, 50),
        slots=st.floats(0, 200),
    ),
)
def test_no_other_assignment_gives_more_tokens_per_second(ladders: dict[Ladder, int], load: Load) -> None:
    meter = TokensPerForward()
    choice = choose_rungs(ladders, load, meter)
    sequences = [ladder for ladder, count in ladders.items() for _ in range(count)]

    def worth(ladder: Ladder, index: int) -> tuple[float, float]:
        return meter.expected(ladder[index]), float(ladder[index].block_length)

    reached = throughput([worth(ladder, choice[ladder]) for ladder in sequences], load)
    best = max(
        throughput([worth(ladder, index) for ladder, index in zip(sequences, indices, strict=True)], load)
        for indices in itertools.product(*(range(len(ladder)) for ladder in sequences))
    )
    assert reached == pytest.approx(best, rel=1e-9)


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


def test_a_rung_that_nobody_measured_counts_as_one_token_a_forward() -> None:
    assert TokensPerForward().expected(Rung(Decoding.DIFFUSION, 8, 4)) == 1.0
