"""The ladder from measured cells: known answers, and what must hold for any measurement."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.ladder_choice import (
    MAX_RUNGS,
    Candidate,
    choose_ladder,
    dominated,
    isotonic,
    linear_fit,
    wilson_low,
    with_quality,
)
from engine.plan import AR, Decoding, Rung, diffusion, self_speculation


def test_wilson_bound_is_the_textbook_value() -> None:
    # 81 of 263: 0.2553 to 0.3662 at 95% two-sided (Newcombe, Statistics in Medicine 17, 1998, table I).
    assert wilson_low(81, 263, z=1.959964) == pytest.approx(0.2553, abs=5e-5)
    assert wilson_low(0, 50) == 0.0


def test_isotonic_pools_what_falls() -> None:
    assert isotonic([1, 3, 2, 4], [1, 1, 1, 1]) == [1, 2.5, 2.5, 4]
    assert isotonic([3, 0], [1, 2]) == [1, 1]


def test_linear_fit_of_a_line() -> None:
    assert linear_fit([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2, 1))


def test_a_linear_fit_of_a_curve_is_worse() -> None:
    assert linear_fit([1, 2, 4, 8], [1, 4, 16, 64])[2] < 0.98


def cell(rung: Rung, rate: float, batched: float, alone: float) -> Candidate:
    return Candidate(rung, rate * 1000, 1000, batched, alone, tokens_per_forward=2.0)


def test_the_frontier_of_a_plain_measurement() -> None:
    ladder = choose_ladder(
        [
            cell(AR, 0.95, batched=10, alone=100),
            cell(self_speculation(4), 0.95, batched=30, alone=70),
            cell(self_speculation(16), 0.95, batched=60, alone=40),
            cell(self_speculation(32), 0.95, batched=90, alone=45),  # worse than length 16 both ways
            cell(diffusion(32, 16), 0.93, batched=200, alone=80),  # dearer than self-speculation, and worse
            cell(diffusion(32, 4), 0.80, batched=50, alone=30),
            cell(diffusion(32, 1), 0.40, batched=20, alone=10),
            cell(diffusion(16, 1), 0.30, batched=25, alone=12),  # dominated
        ]
    )
    assert [(rung.decoding.value, rung.block_length, rung.refinement_steps) for rung in ladder] == [
        ("ar", 1, 1),
        ("self_speculation", 4, 1),
        ("self_speculation", 16, 1),
        ("diffusion", 32, 4),
        ("diffusion", 32, 1),
    ]
    assert ladder[0].expected_quality == ladder[2].expected_quality
    assert ladder[0].expected_quality < 0.95
    assert 0.37 < ladder[-1].expected_quality < 0.40


RUNGS = [AR, *(self_speculation(n) for n in (4, 8, 16, 32))] + [
    diffusion(n, k, threshold) for n in (8, 16, 32) for k in (1, 2, 4, 8) for threshold in (None, 0.9)
]


@st.composite
def measurements(draw: st.DrawFn) -> list[Candidate]:
    rungs = [AR, *draw(st.lists(st.sampled_from(RUNGS[1:]), unique=True, max_size=24))]
    number = st.floats(1, 1000)
    return [
        Candidate(rung, draw(st.integers(0, 1000)), 1000, draw(number), draw(number), draw(st.floats(0.5, 16)))
        for rung in rungs
    ]


@settings(max_examples=60, deadline=None)
@given(measurements())
def test_any_ladder_is_short_and_on_the_frontier(candidates: list[Candidate]) -> None:
    ladder = choose_ladder(candidates)
    assert 1 <= len(ladder) <= MAX_RUNGS
    assert any(rung.decoding is Decoding.AR for rung in ladder)
    fitted = {row.rung.policy(): row for row in with_quality(candidates)}
    for rung in ladder:
        assert rung.decoding is Decoding.AR or rung.exact or not dominated(fitted[rung.policy()], [*fitted.values()])
    qualities = [rung.expected_quality for rung in ladder]
    assert qualities == sorted(qualities, reverse=True)


@settings(max_examples=60, deadline=None)
@given(measurements())
def test_more_steps_are_never_expected_to_be_worse(candidates: list[Candidate]) -> None:
    fitted = with_quality(candidates)
    for row in fitted:
        for other in fitted:
            same = row.rung.policy()[:2] + row.rung.policy()[3:] == other.rung.policy()[:2] + other.rung.policy()[3:]
            if same and row.rung.refinement_steps < other.rung.refinement_steps and row.rung.is_diffusion:
                assert row.quality <= other.quality + 1e-12
