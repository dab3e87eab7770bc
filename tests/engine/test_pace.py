"""The forward in which everybody rides: whoever is late in it is named, and nobody steps down without need."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.pace import RESERVE, SAFETY, Rider, Step, ride

BASE_S = 2e-3


@st.composite
def steps(draw: st.DrawFn) -> tuple[Step, ...]:
    """Rungs that need fewer forwards, and mostly take more, one after the other."""
    count = draw(st.integers(1, 4))
    tokens = sorted(draw(st.lists(st.floats(0.5, 16), min_size=count, max_size=count, unique=True)))
    own_s = draw(st.lists(st.floats(1e-5, 4e-3), min_size=count, max_size=count))
    firsts = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    return tuple(
        Step(place, *values) for place, values in enumerate(zip(tokens, [0.5] * count, firsts, own_s, strict=True))
    )


RIDERS = st.lists(
    st.builds(
        Rider,
        steps=steps(),
        tokens=st.floats(1, 300),
        left_s=st.none() | st.floats(-0.1, 10),
        context_s=st.floats(0, 1e-3),
        first_left_s=st.none() | st.floats(-0.1, 2),
        prompt_forwards=st.integers(0, 4),
        prompt_s=st.floats(0, 0.05),
    ),
    max_size=10,
)


@given(RIDERS)
def test_the_forward_is_what_its_riders_add_up_to(riders: list[Rider]) -> None:
    found = ride(riders, BASE_S)
    taken = sum(rider.own_s(rider.steps[place]) for rider, place in zip(riders, found.places, strict=True))
    assert found.forward_s == pytest.approx(BASE_S + taken)


@given(RIDERS)
def test_whoever_is_not_named_late_keeps_the_deadlines(riders: list[Rider]) -> None:
    found = ride(riders, BASE_S)
    for index, (rider, place) in enumerate(zip(riders, found.places, strict=True)):
        step = rider.steps[place]
        left_s = inf if rider.left_s is None else rider.left_s
        if index not in found.late:
            assert rider.forwards(step) * found.forward_s * SAFETY <= left_s * (1 + 1e-6)
            if rider.first_left_s is not None:
                reading_s = rider.prompt_s + (step.first_forwards + rider.prompt_forwards) * found.forward_s * SAFETY
                assert reading_s <= rider.first_left_s * SAFETY + 1e-9


@given(RIDERS)
def test_a_rider_that_nothing_presses_stays_on_its_preferred_rung(riders: list[Rider]) -> None:
    free = Rider(steps=(Step(0, 1.0, 0.0, 1.0, 1e-4), Step(1, 4.0, 0.5, 2.0, 2e-3)), tokens=50, left_s=None)
    assert ride([*riders, free], BASE_S).places[-1] == 0


SLOW, FAST = Step(0, 1.0, 0.0, 1.0, 1e-4), Step(1, 4.0, 1.0, 1.0, 2e-3)


def rider(left_s: float, tokens: float = 40, **more: float) -> Rider:
    return Rider(steps=(SLOW, FAST), tokens=tokens, left_s=left_s, **more)


def test_alone_with_time_enough_it_keeps_the_slow_rung_and_else_steps_down() -> None:
    needed = 40 * (BASE_S + 1e-4) * RESERVE
    assert ride([rider(needed * 1.01)], BASE_S).places == [0]
    assert ride([rider(needed * 0.99)], BASE_S).places == [1]


def test_the_last_rung_needs_the_safety_only() -> None:
    needed = 11 * (BASE_S + 2e-3) * SAFETY
    assert ride([rider(needed * 1.01)], BASE_S).late == []
    assert ride([rider(needed * 0.99)], BASE_S).late == [0]


def test_a_newcomer_makes_the_others_step_down_and_in_the_end_late() -> None:
    waiting = rider(40 * (BASE_S + 1e-4) * RESERVE * 1.2)
    assert ride([waiting], BASE_S).places == [0]
    crowd = [Rider(steps=(Step(0, 1.0, 0.0, 1.0, 1e-3),), tokens=10, left_s=None)]
    assert ride([waiting, *crowd], BASE_S).places[0] == 1
    assert ride([waiting, *crowd * 20], BASE_S).late == [0]


def test_a_prompt_is_paid_for_before_the_first_text() -> None:
    first = Rider(steps=(SLOW,), tokens=40, left_s=None, first_left_s=0.05, prompt_forwards=2, prompt_s=0.03)
    # 20 ms are left for three forwards.
    assert first.pace_s(SLOW, 1.0) == pytest.approx(0.02 / 3)


def test_a_share_leaves_time_to_others() -> None:
    assert rider(1.0, share=0.5).pace_s(SLOW) == pytest.approx(0.5 * rider(1.0).pace_s(SLOW))


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_a_deadline_that_has_passed_has_no_pace(left_s: float) -> None:
    assert rider(left_s).pace_s(FAST) == 0
    assert ride([rider(left_s)], BASE_S).late == [0]
