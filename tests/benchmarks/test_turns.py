"""Engines in turns: one forward at a time, on clocks that stand still meanwhile."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import pytest

from benchmarks.command import CHECKPOINT
from benchmarks.policies import Decision, Fixed
from benchmarks.policy_run import Window, closed_loop, in_loop, new_engine
from benchmarks.promise_trace import Request
from benchmarks.turns import TURN_S, Step, Turns, window_weight
from engine.engine import Engine
from engine.events import Event
from engine.plan import AR, self_speculation
from engine.sequence import Sequence

REQUEST = Request(0, [1, 300, 301], "", 16, "none", "default", 16, None, ignore_eos=True)
AR_ONLY, DRAFTS = Fixed("ar", AR), Fixed("drafts", self_speculation(8))


class Dying(Fixed):
    """Fails at its first request."""

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        raise ArithmeticError("this policy cannot")


class Undecided(Fixed):
    """Lets its client wait."""

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        await asyncio.sleep(60)
        return await super().decide(request, arrived_s)


@pytest.fixture
def engines() -> Iterator[list[Engine]]:
    made = [new_engine(CHECKPOINT, 4096) for _ in range(3)]
    for engine in made:
        engine.start()
    yield made
    for engine in made:
        engine.stop()


def watched(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> list[tuple[float, float, int]]:
    """Where every forward's begin, end and engine will be noted; before there are turns."""
    seen: list[tuple[float, float, int]] = []

    def step(place: int, inner: Step) -> list[tuple[Sequence, Event]]:
        begun = time.perf_counter()
        events = inner()
        seen.append((begun, time.perf_counter(), place))
        return events

    for place, engine in enumerate(engines):
        monkeypatch.setattr(engine.core, "step", partial(step, place, engine.core.step))
    return seen


def test_one_forward_at_a_time_and_each_its_share(engines: list[Engine], monkeypatch: pytest.MonkeyPatch) -> None:
    seen = watched(engines, monkeypatch)
    turns = Turns(engines)
    begun = time.perf_counter()
    closed = in_loop(turns.closed_loops({0: AR_ONLY, 2: DRAFTS}, [REQUEST], 3, Window(0.0, 8 * TURN_S)))
    wall_s = time.perf_counter() - begun
    assert {place for *_, place in seen} == {0, 2}, "the engine between them rests"
    inside = sorted(seen)
    assert all(former[1] <= later[0] for former, later in pairwise(inside))
    changes = sum(former[2] != later[2] for former, later in pairwise(inside))
    assert changes >= 8
    assert sum(one.seconds for one in closed) <= wall_s, "a window's time is its own turns'"
    assert all(one.seconds >= 8 * TURN_S and one.ended for one in closed)
    assert all(not engine.present() for engine in engines)


def test_latencies_leave_out_the_others_turns(engines: list[Engine]) -> None:
    turns = Turns(engines)
    window = Window(0.0, 0.0, least_ended=20)
    (alone,) = in_loop(turns.closed_loops({0: AR_ONLY}, [REQUEST], 1, window))
    begun = time.perf_counter()
    three = in_loop(turns.closed_loops(dict.fromkeys(range(3), AR_ONLY), [REQUEST], 1, window))
    wall_s = time.perf_counter() - begun
    assert [len(one.ended) for one in [alone, *three]] == [20] * 4
    own_s = sum((outcome.latency_ms or 0.0) / 1e3 for outcome in three[0].ended)
    assert own_s <= three[0].seconds < 0.7 * wall_s


def test_who_is_done_lets_the_others_go_on(engines: list[Engine]) -> None:
    turns = Turns(engines)
    run = turns.closed_loops({0: AR_ONLY, 1: DRAFTS}, [REQUEST], 1, Window(0.0, 0.0, least_ended=60))
    slow, fast = in_loop(run)
    assert len(slow.ended) >= 60
    assert fast.seconds < slow.seconds


def test_outside_of_it_nobody_waits_and_all_clocks_run(engines: list[Engine]) -> None:
    turns = Turns(engines)
    in_loop(turns.closed_loops({0: AR_ONLY, 1: DRAFTS}, [REQUEST], 1, Window(0.0, TURN_S)))
    before = [turns.now(place) for place in range(3)]
    time.sleep(0.05)
    assert [turns.now(place) - former >= 0.05 for place, former in enumerate(before)] == [True] * 3
    (closed,) = in_loop(turns.closed_loops({1: DRAFTS}, [REQUEST], 1, Window(0.0, 0.0, least_ended=1)))
    assert closed.ended


def test_a_client_that_dies_ends_it_for_all(engines: list[Engine]) -> None:
    turns = Turns(engines)
    with pytest.raises(ExceptionGroup) as caught:
        in_loop(turns.closed_loops({0: AR_ONLY, 1: Dying("dying", AR)}, [REQUEST], 1, Window(0.0, 60.0)))
    assert caught.group_contains(ArithmeticError)


def test_windows_grow_with_the_number_of_requests() -> None:
    assert window_weight(64) == 3.0
    assert window_weight(1) < window_weight(8)


def test_a_client_waits_for_a_clock_that_stands_still_without_spinning(engines: list[Engine]) -> None:
    begun, calls = time.perf_counter(), 0

    def clock() -> float:
        nonlocal calls
        calls += 1
        return 0.0 if time.perf_counter() - begun < 0.3 else 1.0

    engines[0].core.clock = clock
    in_loop(closed_loop(engines[0], Undecided("none", AR), [REQUEST], 1, Window(0.0, 1e-6)))
    assert calls < 100
