"""A deadline that is hopeless is put off: it harms nobody who can be kept, and its answer does not wait for an empty
engine."""

from __future__ import annotations

from random import Random

import pytest
from torch import Tensor

from engine.batch import ForwardBatch
from engine.plan import AR, Plan, self_speculation
from engine.put_off import LATER
from engine.sequence import Sequence
from tests.engine.test_deadlines import EXACT, traffic
from tests.engine.virtual_engine import LAPTOP, VirtualEngine, VirtualRequest

STALL_S = 0.6


def test_after_a_stall_what_it_made_late_is_done_soon_though_others_keep_coming(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Beyond what the engine can do, so that there is never room for those without a deadline."""
    engine = VirtualEngine(admission=True)
    executor, run = engine.executor, engine.executor.run
    stalls = [2.0]

    def stalling(batch: ForwardBatch) -> Tensor:
        if stalls and executor.now >= stalls[0]:
            stalls.clear()
            executor.now += STALL_S
        return run(batch)

    monkeypatch.setattr(executor, "run", stalling)
    requests = traffic(rate=45, seconds=8, seed=4)
    engine.run(requests)
    timed = [request for request in requests if request.slo_s is not None and not request.refused]
    late = sorted(request.latency_s - (request.slo_s or 0.0) for request in timed if not request.in_time)
    assert len(late) >= 10
    assert late[-1] <= STALL_S + 0.5
    # Those who came after it are kept as well as ever.
    later = [request for request in timed if request.at_s > 3.5]
    assert sum(request.in_time for request in later) >= 0.95 * len(later)


def lone(slo_s: float | None, first_slo_s: float | None = None) -> tuple[VirtualEngine, Sequence]:
    """An engine with one sequence of 60 tokens, at its first border."""
    engine = VirtualEngine()
    plan = Plan(ladder=(AR,), expected_tokens=60)
    sequence = engine._sequence(VirtualRequest(0.0, 16, 60, plan, slo_s, first_slo_s), Random(0))
    engine.core.add(sequence)
    engine.core.step()
    return engine, sequence


def test_it_is_put_off_to_when_it_would_be_done_in_every_fourth_forward() -> None:
    engine, sequence = lone(slo_s=1.0)
    now = 0.95
    engine.core._look_ahead(now)
    forward_s = LAPTOP.base_s + LAPTOP.own_s(1, 17) / LATER
    assert sequence.put_off_s == pytest.approx(now + LATER * 59 * forward_s, rel=0.02)
    assert sequence.first_put_off_s == float("-inf")
    assert sequence.due_s == 1.0, "what was promised stays what it was"


def test_a_deadline_that_is_late_by_little_is_kept() -> None:
    engine, sequence = lone(slo_s=1.0)
    engine.core._look_ahead(1.0 - 59 * (LAPTOP.base_s + LAPTOP.own_s(1, 17)) * 0.8)
    assert sequence.put_off_s == float("-inf")


def test_only_the_hopeless_one_of_two_deadlines_is_put_off() -> None:
    engine = VirtualEngine()
    plan = Plan(ladder=(AR,), expected_tokens=60)
    sequence = engine._sequence(VirtualRequest(0.0, 900, 60, plan, 5.0, 0.01), Random(0))
    engine.core.add(sequence)
    engine.core._look_ahead(0.0)
    assert 0.01 < sequence.first_put_off_s < 0.3, "it needs five forwards, the whole answer 64"
    assert sequence.put_off_s == float("-inf")
    engine.core._look_ahead(4.99)
    assert sequence.put_off_s > 5.0


def test_who_can_be_kept_is_kept_beside_what_was_put_off() -> None:
    ladder = (AR, self_speculation(8))
    lost = [VirtualRequest(0.0, 20, 120, Plan(ladder=EXACT, expected_tokens=120), slo_s=0.02) for _ in range(6)]
    kept = VirtualRequest(0.01, 20, 60, Plan(ladder=ladder, expected_tokens=60), slo_s=0.4)
    VirtualEngine().run([*lost, kept])
    assert kept.in_time
    assert not any(request.in_time for request in lost)
    assert max(request.latency_s for request in lost) <= 1.0
