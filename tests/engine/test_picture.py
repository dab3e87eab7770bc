"""What other threads are told between two forwards: as much as the loop itself would find out."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.admission import Newcomer
from engine.plan import AR, Plan, self_speculation
from engine.sequence import Sequence
from tests.engine.virtual_engine import VirtualEngine, VirtualRequest

EXACT = (AR, self_speculation(8), self_speculation(32))
SLO_S = 0.6
NEWCOMER = Newcomer(Plan(ladder=EXACT, expected_tokens=60), prompt_tokens=40, output_tokens=60, left_s=SLO_S)


def sequence_in(engine: VirtualEngine, slo_s: float | None = SLO_S) -> Sequence:
    request = VirtualRequest(engine.executor.now, 40, 60, Plan(ladder=EXACT, expected_tokens=60), slo_s=slo_s)
    return engine._sequence(request, Random(0))


def busy(count: int, slo_s: float | None = SLO_S) -> VirtualEngine:
    """An engine that has run a few forwards with so many sequences."""
    engine = VirtualEngine()
    for _ in range(count):
        engine.core.add(sequence_in(engine, slo_s))
    for _ in range(3):
        engine.core.step()
    return engine


def admitted(engine: VirtualEngine, look_again: bool) -> int:
    """How many like `NEWCOMER` are let in one after the other before the next forward."""
    arriving: list[Sequence] = []
    while engine.picture.rung_for(NEWCOMER, arriving) is not None:
        arriving.append(sequence_in(engine))
        if look_again:
            engine.core.view = None
    return len(arriving)


@given(st.integers(1, 8))
def test_who_is_on_the_way_counts_as_if_the_loop_had_seen_him(count: int) -> None:
    engine = busy(count)
    since = admitted(engine, look_again=False)
    assert 0 < since < 200
    # Prices and crowds are those of the last forward.
    assert abs(since - admitted(engine, look_again=True)) <= 1


def test_a_full_engine_admits_nobody_before_its_next_forward_either() -> None:
    engine = busy(3)
    for _ in range(admitted(engine, look_again=False)):
        engine.core.waiting.append(sequence_in(engine))
    assert engine.picture.rung_for(NEWCOMER) is None


def test_whoever_comes_in_the_middle_of_a_forward_waits_for_its_end() -> None:
    engine = busy(4)
    before_s = engine.picture.earliest_s(NEWCOMER)
    engine.core.ends_s = engine.executor.now + 0.2
    assert abs(engine.picture.earliest_s(NEWCOMER) - before_s - 0.2) < 0.05 * (before_s + 0.2)
    earliest_s = engine.picture.earliest_s(NEWCOMER)
    assert engine.picture.rung_for(NEWCOMER.due_in(earliest_s)) is not None
    assert engine.picture.rung_for(NEWCOMER.due_in(earliest_s - 0.1)) is None


def test_right_after_a_forward_the_next_one_counts_as_under_way() -> None:
    engine = busy(4)
    left_s = engine.core.ends_s - engine.executor.now
    assert left_s == pytest.approx(engine.core.step_s)
    waiting_s = engine.picture.earliest_s(NEWCOMER)
    engine.core.ends_s = engine.executor.now
    assert waiting_s == pytest.approx(engine.picture.earliest_s(NEWCOMER) + left_s, rel=0.05)


def test_the_share_of_time_spent_on_deadlines() -> None:
    def share(timed: int, patient: int) -> float:
        engine = busy(timed)
        for _ in range(patient):
            engine.core.add(sequence_in(engine, None))
        for _ in range(3):
            engine.core.step()
        return engine.picture.stats().timed_share

    assert share(0, 4) == 0.0
    assert 0 < share(2, 6) < share(6, 2) < 1


def test_an_engine_that_has_become_idle_is_as_good_as_a_new_one() -> None:
    engine = busy(6)
    assert engine.picture.company().forward_s > engine.cost.base_s
    while not engine.core.idle:
        engine.core.step()
    assert engine.core.view is None
    assert engine.core.ends_s < engine.executor.now
    assert engine.picture.company().forward_s == engine.core.cost_model.cost.base_s
    assert engine.picture.stats().queue_s == 0


def test_stats_count_those_on_the_way_and_tell_deadlines_from_the_rest() -> None:
    engine = busy(2)
    engine.core.add(sequence_in(engine, None))
    late, patient = sequence_in(engine), sequence_in(engine, None)
    stats = engine.picture.stats([late, patient])
    assert (stats.running, stats.waiting) == (2, 3)
    assert stats.waiting_tokens == 3 * 40
    assert stats.open_context == sum(len(one.tokens) for one in [*engine.core.running, late, patient]) + 40
    assert 0 < stats.timed_s < stats.queue_s
    assert engine.picture.stats().timed_s < stats.timed_s
