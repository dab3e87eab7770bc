"""The ladder from measured candidates: known answers, and what must hold for any measurement."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration.bootstrap import Interval
from engine.calibration.frontier import (
    MAX_RUNGS,
    Candidate,
    Choice,
    choose,
    dominator,
    quality_intervals,
    remeasured,
)
from engine.plan import AR, Rung, diffusion, self_speculation


def row(rung: Rung, quality: float, alone: float, full: float) -> Candidate:
    return Candidate(rung, Interval(quality, quality, quality), {1: alone, 64: full}, 2.0)


def policies(choice: Choice) -> list[Rung]:
    return [one.rung for one in choice.kept]


def reasons(choice: Choice) -> dict[Rung, str]:
    return {one.rung: one.reason for one in choice.omitted}


PLAIN = [
    row(AR, 0.95, alone=100, full=30),
    row(self_speculation(4), 0.95, alone=70, full=32),
    row(self_speculation(8), 0.95, alone=60, full=20),
    row(self_speculation(16), 0.95, alone=40, full=25),
    row(self_speculation(32), 0.95, alone=45, full=28),
    row(diffusion(32, 16), 0.93, alone=80, full=90),
    row(diffusion(32, 4), 0.80, alone=30, full=50),
    row(diffusion(32, 1), 0.40, alone=10, full=15),
    row(diffusion(16, 1), 0.30, alone=12, full=16),
]


def test_a_rung_stays_if_it_is_on_the_frontier_of_one_load() -> None:
    choice = choose(PLAIN)
    assert policies(choice) == [AR, self_speculation(8), self_speculation(16), diffusion(32, 4), diffusion(32, 1)]
    why = reasons(choice)
    assert set(why) == {self_speculation(4), self_speculation(32), diffusion(32, 16), diffusion(16, 1)}
    assert "by self-speculation 16 at load 1" in why[self_speculation(4)]
    assert "by self-speculation 8 at load 64" in why[self_speculation(4)]
    assert "by diffusion 32, 1 step at load 1" in why[diffusion(16, 1)]
    assert "load 64" in why[diffusion(16, 1)]


@pytest.mark.parametrize(("full", "offered"), [(20.9, True), (21.2, False)])
def test_of_rungs_of_one_quality_and_nearly_one_cost_none_displaces_the_other(full: float, offered: bool) -> None:
    choice = choose([*PLAIN[:3], row(self_speculation(16), 0.95, alone=80, full=full)])
    assert (self_speculation(16) in policies(choice)) == offered


def test_an_exact_rung_is_better_than_a_lossy_one_that_measures_alike() -> None:
    audited = replace(diffusion(32, 1), audit=0.1)
    assert audited not in policies(choose([PLAIN[0], PLAIN[2], row(audited, 0.95, alone=58, full=19.4)]))


def test_ar_is_offered_even_where_it_is_dominated() -> None:
    assert dominator(PLAIN[0], PLAIN, 64) is PLAIN[2]
    assert AR in policies(choose(PLAIN))


def test_an_exact_rung_is_not_displaced_by_an_estimate() -> None:
    equal = row(diffusion(16, 8, 0.9), 0.95, alone=5, full=5)
    assert policies(choose([PLAIN[0], PLAIN[3], equal])) == [AR, self_speculation(16), diffusion(16, 8, 0.9)]


def test_the_ninth_rung_is_the_one_that_is_missed_least() -> None:
    lossy = [row(diffusion(32, steps), 0.1 * steps, alone=10.0 * steps, full=10.0 * steps) for steps in range(1, 8)]
    twin = row(diffusion(16, 4), 0.401, alone=40.1, full=40.1)
    choice = choose([row(AR, 0.95, 100, 100), *lossy, twin])
    assert len(choice.kept) == MAX_RUNGS
    (omitted,) = choice.omitted
    assert omitted.rung == diffusion(32, 4)
    assert "at most 8 rungs" in omitted.reason
    assert omitted.reason.endswith("diffusion 16, 4 steps")


def test_other_prompts_decide_the_quality_and_may_take_a_rung_off_the_frontier() -> None:
    choice = choose(PLAIN)
    worse = {one.rung: Interval(0.9, 0.9, 0.9) for one in choice.kept} | {diffusion(32, 4): Interval(0.2, 0.2, 0.2)}
    again = remeasured(choice, worse | {diffusion(32, 1): Interval(0.3, 0.3, 0.3)})
    assert policies(again) == [AR, self_speculation(8), self_speculation(16), diffusion(32, 1)]
    assert [one.quality.low for one in again.kept] == [0.9, 0.9, 0.9, 0.3]
    assert reasons(again)[diffusion(32, 4)].startswith("on the selection split dominated by diffusion 32, 1 step")


def test_a_rung_that_was_not_measured_again_is_not_offered() -> None:
    again = remeasured(choose(PLAIN), {AR: Interval(0.9, 0.9, 0.9)})
    assert policies(again) == [AR]
    assert "not measured on the selection split" in reasons(again)[self_speculation(8)]


def test_exact_rungs_share_one_quality_and_no_lossy_one_is_above_it() -> None:
    prompts = 200
    ar = (np.arange(prompts) % 10 != 0).astype(float)
    found = quality_intervals({AR: ar, self_speculation(8): ar, diffusion(8, 4): np.ones(prompts)})
    assert found[AR] == found[self_speculation(8)]
    assert found[AR].value == pytest.approx(0.9)
    assert found[diffusion(8, 4)].low == found[AR].low
    assert found[diffusion(8, 4)].value == found[AR].value


def test_more_steps_are_never_expected_to_be_worse() -> None:
    prompts = np.arange(100)
    outcomes = {
        AR: np.ones(100),
        diffusion(32, 1): (prompts < 60).astype(float),
        diffusion(32, 2): (prompts < 50).astype(float),
        diffusion(32, 4): (prompts < 80).astype(float),
        diffusion(16, 2): (prompts < 10).astype(float),
    }
    found = quality_intervals(outcomes)
    assert found[diffusion(32, 1)].value == found[diffusion(32, 2)].value == pytest.approx(0.55)
    assert found[diffusion(32, 4)].value == pytest.approx(0.8)
    assert found[diffusion(16, 2)].value == pytest.approx(0.1)


RUNGS = [*(self_speculation(n) for n in (4, 8, 16, 32))] + [
    diffusion(n, k, threshold) for n in (8, 16, 32) for k in (1, 2, 4, 8) for threshold in (None, 0.9)
]


@st.composite
def measurements(draw: st.DrawFn) -> list[Candidate]:
    rungs = draw(st.lists(st.sampled_from(RUNGS), unique=True, max_size=24))
    number, exact = st.floats(1, 1000), draw(st.floats(0, 1))
    return [
        row(rung, exact if rung.exact else min(exact, draw(st.floats(0, 1))), draw(number), draw(number))
        for rung in [AR, *rungs]
    ]


@settings(max_examples=80)
@given(measurements())
def test_any_ladder_is_short_on_the_frontier_and_accounts_for_every_candidate(candidates: list[Candidate]) -> None:
    choice = choose(candidates)
    assert 1 <= len(choice.kept) <= MAX_RUNGS
    assert AR in policies(choice)
    assert {*policies(choice)} | {one.rung for one in choice.omitted} == {one.rung for one in candidates}
    for one in choice.kept:
        assert one.is_ar or any(dominator(one, candidates, load) is None for load in (1, 64))
    qualities = [one.quality.low for one in choice.kept]
    assert qualities == sorted(qualities, reverse=True)
    for omission in choice.omitted:
        assert omission.dominated_by.keys() == {1, 64} or "at most 8 rungs" in omission.reason
