"""The forward in which everybody rides: whoever is late in it is named, and nobody steps down without need."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.curve import Curve, joined
from engine.pace import (
    KEPT,
    LOST,
    NO_PACING,
    SAFETY,
    Pacing,
    Ride,
    Riders,
    Step,
    StepTable,
    longest_s,
    reserve,
    ride,
)

BASE_S = 2e-3
MOST = reserve(1.0)


@dataclass
class Rider:
    """One entry of `Riders`, with the rungs that it may use."""

    steps: tuple[Step, ...]
    tokens: float
    left_s: float = inf
    first_left_s: float = inf
    context_s: float = 0.0
    prompt_forwards: float = 0.0
    prompt_s: float = 0.0
    share: float = 1.0
    reserve: float = MOST

    def forwards(self, place: int) -> float:
        step = self.steps[place]
        return max(1.0, self.tokens / step.tokens + step.rest) + self.prompt_forwards

    def own_s(self, place: int) -> float:
        return self.steps[place].own_s + self.context_s + self.prompt_s / self.forwards(place)

    def pace_s(self, place: int) -> float:
        """The longest forward without any margin, by its definition."""
        first = (self.first_left_s - self.prompt_s) / (self.steps[place].first_forwards + self.prompt_forwards)
        return max(min(self.left_s / self.forwards(place), first), 0.0) * self.share


def rows_of(*riders: Rider) -> tuple[Riders, StepTable]:
    names = ("tokens", "left_s", "first_left_s", "context_s", "prompt_forwards", "prompt_s", "share", "reserve")
    columns = {name: np.array([float(getattr(rider, name)) for rider in riders]) for name in names}
    rows = Riders(np.arange(len(riders)), np.zeros(len(riders), dtype=np.int64), **columns)
    return rows, StepTable([rider.steps for rider in riders])


def together(*riders: Rider) -> Ride:
    return ride(*rows_of(*riders), BASE_S)


def curve_of(pacing: Pacing) -> Curve:
    return Curve(pacing.changes())


def added_s(riders: list[Rider], forward_s: float) -> float:
    """What riders add to a forward, by its definition."""
    pacing = Pacing(*rows_of(*riders), BASE_S)
    found = pacing.ride(forward_s)
    added = 0.0
    for rider, place in zip(riders, found.places.tolist(), strict=True):
        needed_s = rider.pace_s(place) / KEPT
        added += rider.own_s(place) * (1.0 if needed_s <= forward_s else forward_s / needed_s)
    return added


def first_rest_s(*riders: Rider) -> float:
    """The shortest mean forward, one small step after the other."""
    forward_s = BASE_S
    while (longer_s := BASE_S + added_s(list(riders), forward_s)) > forward_s * (1 + 1e-7):
        forward_s = longer_s
    return forward_s


@st.composite
def steps(draw: st.DrawFn, ascending: bool) -> tuple[Step, ...]:
    """Rungs that need fewer forwards, one after the other; `ascending`: and take more."""
    count = draw(st.integers(1, 4))
    tokens = sorted(draw(st.lists(st.floats(0.5, 16), min_size=count, max_size=count, unique=True)))
    own_s = draw(st.lists(st.floats(1e-5, 4e-3), min_size=count, max_size=count))
    if ascending:
        own_s.sort()
    firsts = draw(st.lists(st.integers(1, 9), min_size=count, max_size=count))
    return tuple(Step(*values) for values in zip(range(count), tokens, [0.5] * count, firsts, own_s, strict=True))


def crowds(ascending: bool) -> st.SearchStrategy[list[Rider]]:
    return st.lists(
        st.builds(
            Rider,
            steps=steps(ascending),
            tokens=st.floats(1, 300),
            left_s=st.just(inf) | st.floats(-0.1, 10),
            context_s=st.floats(0, 1e-3),
            first_left_s=st.just(inf) | st.floats(-0.1, 2),
            prompt_forwards=st.integers(0, 4).map(float),
            prompt_s=st.floats(0, 0.05),
            reserve=st.floats(0, 1).map(reserve),
        ),
        min_size=1,
        max_size=10,
    )


RIDERS = crowds(ascending=True)
ANY_RIDERS = crowds(ascending=False)
ON_ONE_STEP = RIDERS.map(lambda riders: [replace(rider, steps=rider.steps[:1]) for rider in riders])
"""Where somebody changes the step there may be several forwards in which everybody finds rest."""


@given(ANY_RIDERS)
def test_the_mean_forward_is_what_its_riders_add_as_often_as_they_ride(riders: list[Rider]) -> None:
    forward_s = together(*riders).forward_s
    assert BASE_S + added_s(riders, forward_s) <= forward_s * (1 + 1e-6)
    assert forward_s >= BASE_S


@given(ANY_RIDERS, st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_no_shorter_forward_holds_them(riders: list[Rider], shares: list[float]) -> None:
    forward_s = together(*riders).forward_s
    for share in shares:
        shorter_s = BASE_S + share * (forward_s - BASE_S)
        if shorter_s < forward_s * (1 - 1e-6):
            assert BASE_S + added_s(riders, shorter_s) > shorter_s


@given(ON_ONE_STEP)
def test_it_is_where_small_steps_come_to_rest(riders: list[Rider]) -> None:
    assert together(*riders).forward_s == pytest.approx(first_rest_s(*riders), rel=1e-4)


@given(ANY_RIDERS, st.integers(0, 10))
def test_some_before_the_others_make_no_difference(riders: list[Rider], first: int) -> None:
    """Those that are there already, then newcomers."""
    former, newcomers = (
        Pacing(*rows_of(*some), BASE_S) if some else NO_PACING for some in (riders[:first], riders[first:])
    )
    found_s = curve_of(former).with_changes(newcomers.changes()).rest_s(BASE_S)
    assert found_s == pytest.approx(together(*riders).forward_s)
    assert curve_of(former).rest_s(BASE_S) <= found_s * (1 + 1e-9)


def crowd_of(*crowds: list[Rider]) -> tuple[Curve, float, float]:
    """What all of them add, their mean forward, and the longest in which all are as well off."""
    parts = [Pacing(*rows_of(*some), BASE_S) for some in crowds]
    curve = Curve(joined(part.changes() for part in parts))
    forward_s = curve.rest_s(BASE_S)
    return curve, forward_s, longest_s(parts, forward_s)


@given(ANY_RIDERS, ANY_RIDERS)
def test_who_adds_no_more_than_the_room_makes_nobody_worse_off(riders: list[Rider], more: list[Rider]) -> None:
    curve, forward_s, most_s = crowd_of(riders, more)
    left_s = curve.room_s(BASE_S, forward_s, most_s) if most_s < inf else 0.0
    assert left_s >= 0
    if left_s > 0:
        assert curve.rest_s(BASE_S + left_s * (1 - 1e-9)) <= most_s * (1 + 1e-9)


@given(ON_ONE_STEP, ON_ONE_STEP)
def test_who_adds_more_than_the_room_makes_somebody_worse_off(riders: list[Rider], more: list[Rider]) -> None:
    curve, forward_s, most_s = crowd_of(riders, more)
    if most_s < inf:
        left_s = curve.room_s(BASE_S, forward_s, most_s)
        assert curve.rest_s(BASE_S + left_s * (1 + 1e-6) + 1e-12) > most_s * (1 - 1e-9)


@given(RIDERS)
def test_whoever_is_not_named_keeps_the_deadlines(riders: list[Rider]) -> None:
    found = together(*riders)
    for rider, place, tight, late in zip(riders, found.places.tolist(), found.tight, found.late, strict=True):
        pace_s = rider.pace_s(place)
        if not tight:
            assert found.forward_s * SAFETY <= pace_s * (1 + 1e-9)
        if not late:
            assert found.forward_s * LOST <= pace_s * (1 + 1e-9)
        if late:
            assert tight
            assert pace_s == max(rider.pace_s(other) for other in range(len(rider.steps)))


@given(RIDERS)
def test_nobody_steps_down_without_need(riders: list[Rider]) -> None:
    found = together(*riders)
    for rider, place in zip(riders, found.places.tolist(), strict=True):
        assert all(rider.pace_s(before) / rider.reserve < found.forward_s for before in range(place))


@given(RIDERS)
def test_what_has_no_deadline_stays_on_its_preferred_rung_and_has_no_pace(riders: list[Rider]) -> None:
    found = together(*riders, Rider((SLOW, FAST), tokens=50))
    assert found.places[-1] == 0
    assert found.pace_s[-1] == inf


SLOW, FAST = Step(0, 1.0, 0.0, 1.0, 1e-4), Step(1, 4.0, 1.0, 1.0, 2e-3)


def rider(left_s: float, share: float = 1.0, reserve: float = MOST) -> Rider:
    return Rider((SLOW, FAST), tokens=40, left_s=left_s, share=share, reserve=reserve)


def needed_s(forwards: float, own_s: float, margin: float) -> float:
    """Time of so many forwards of one rider alone, which needs to take part in `KEPT` of `margin` of them."""
    return forwards * margin * (BASE_S + own_s * KEPT / margin)


@pytest.mark.parametrize("timed_share", [0.0, 0.4, 1.0])
def test_alone_with_time_enough_it_keeps_the_slow_rung_and_else_steps_down(timed_share: float) -> None:
    """Enough is more where others with a deadline keep coming."""
    margin = SAFETY * (1 + timed_share)
    needed = needed_s(40, 1e-4, margin)
    assert together(rider(needed * 1.02, reserve=reserve(timed_share))).places.tolist() == [0]
    assert together(rider(needed * 0.98, reserve=reserve(timed_share))).places.tolist() == [1]


def test_the_last_rung_needs_the_safety_only_and_is_lost_long_after_that() -> None:
    least, lost = needed_s(11, 2e-3, SAFETY), 11 * LOST * (BASE_S + 2e-3)
    easy, tight, late = (together(rider(left_s)) for left_s in (least * 1.02, lost * 1.03, lost * 0.97))
    assert (easy.tight.tolist(), easy.late.tolist()) == ([False], [False])
    assert (tight.tight.tolist(), tight.late.tolist()) == ([True], [False])
    assert (late.tight.tolist(), late.late.tolist()) == ([True], [True])


def test_a_first_text_or_a_short_answer_stays_on_the_rung_that_has_it_soonest() -> None:
    large = Step(1, 16.0, 1.0, 3.0, 2e-3)
    first_text = Rider((SLOW, large), tokens=100, first_left_s=SAFETY * 1.02 * (BASE_S + 1e-4))
    assert not together(first_text).tight[0]
    assert together(first_text).places.tolist() == [0]
    short = Rider((SLOW, large), tokens=1, left_s=SAFETY * 1.02 * (BASE_S + 1e-4))
    assert not together(short).tight[0]
    assert together(short).places.tolist() == [0]


def test_a_crowd_makes_it_step_down_and_in_the_end_late() -> None:
    waiting = rider(40 * (BASE_S + 1e-4) * 2.4, reserve=2.0)
    pressed = Rider((Step(0, 1.0, 0.0, 1.0, 1e-3),), tokens=10, left_s=0.05)
    assert together(waiting).places.tolist() == [0]
    assert together(waiting, pressed).places[0] == 1
    assert together(waiting, *[pressed] * 30).late[0]


def test_a_loose_deadline_rides_only_as_often_as_it_needs() -> None:
    heavy = (Step(0, 1.0, 0.0, 1.0, 10e-3),)
    always, often, seldom = (
        together(Rider(heavy, tokens=40, left_s=40 * pace_s * KEPT)) for pace_s in (9e-3, 20e-3, 120e-3)
    )
    assert always.forward_s == pytest.approx(12e-3, rel=0.02)
    # A share d / 20 ms of forwards of d adds 10 ms: d = 2 ms + 10 ms * d / 20 ms.
    assert often.forward_s == pytest.approx(4e-3, rel=0.02)
    assert seldom.forward_s == pytest.approx(2e-3 / (1 - 10 / 120), rel=0.02)


def test_a_prompt_is_paid_for_before_the_first_text() -> None:
    first = Rider((SLOW,), tokens=40, first_left_s=0.05, prompt_forwards=2, prompt_s=0.03)
    # 20 ms are left for three forwards.
    assert together(first).pace_s[0] * SAFETY == pytest.approx(0.02 / 3)


def test_a_share_leaves_time_to_others() -> None:
    whole, half = together(rider(2.0)), together(rider(2.0, share=0.5))
    assert half.pace_s[0] == pytest.approx(0.5 * whole.pace_s[0])


@pytest.mark.parametrize("left_s", [0.0, -1.0])
def test_a_deadline_that_has_passed_is_late(left_s: float) -> None:
    found = together(rider(left_s))
    assert found.late.tolist() == [True]
    assert found.pace_s[0] == 0
