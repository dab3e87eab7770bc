"""Engines that take turns on one machine, so that whatever slows the machine for a while slows all of them alike.

A shared machine's speed wanders by tens of percent from one second to the next: windows of seconds, one after another,
compare its moods. Here every engine serves its own requests at the same time as the others, a few forwards each in
turn, and has a clock that stands still meanwhile.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.policy_run import closed_loop

if TYPE_CHECKING:
    from benchmarks.policies import Policy
    from benchmarks.policy_run import Closed, Window
    from benchmarks.promise_trace import Request
    from engine.engine import Engine
    from engine.events import Event
    from engine.sequence import Sequence as Open

Step = Callable[[], "list[tuple[Open, Event]]"]

TURN_S = 0.03
"""A few forwards, and short beside what moves a machine's speed. A turn ends with the first forward that ends later."""


def window_weight(clients: int) -> float:
    """How much longer a window is than for one: answers take longer together, and each window needs whole ones."""
    return 1 + clients / 32


class Turns:
    """Several engines' turns. Outside of `closed_loops` nobody waits, and all clocks run.

    From its making on the engines' clocks and steps are those of here; their loops may run already, without requests.
    """

    def __init__(self, engines: Sequence[Engine]) -> None:
        self._engines = engines
        self._condition = threading.Condition()
        # Not set while the client wants the condition: who lets go of a lock and asks for it again at once, as an
        # engine does between two forwards, would get it before anybody who waits for it.
        self._may_step = threading.Event()
        self._may_step.set()
        self._handing: asyncio.Task[None] | None = None
        self._places: list[int] = []
        now = perf_counter()
        # Whose turn it is (None: all may go), since when, and every engine's time before that. Replaced as a whole, so
        # that a clock can be read without a lock.
        self._state: tuple[int | None, float, list[float]] = (None, now, [now] * len(engines))
        self._over = False
        for place, engine in enumerate(engines):
            engine.core.clock = partial(self.now, place)
            engine.core.step = partial(self._step, place, engine.core.step)  # type: ignore[method-assign]

    def now(self, place: int) -> float:
        """The time of one engine, seconds: `perf_counter` when turns were made, and how long it had its turn since."""
        whose, since, spent = self._state
        return spent[place] + (perf_counter() - since if whose in (None, place) else 0.0)

    async def closed_loops(
        self, policies: Mapping[int, Policy], requests: Sequence[Request], clients: int, window: Window
    ) -> list[Closed]:
        """A closed loop of `clients` at each of these engines, by their places, in turns; all others rest.

        An engine whose window has ended rests too; its clients are cancelled when all have, at no turn's cost. Raises
        an ExceptionGroup of what a client died of.
        """
        barrier = asyncio.Barrier(len(policies))

        async def ended(place: int) -> None:
            self._leave(place)
            await barrier.wait()

        self._start(list(policies))
        try:
            async with asyncio.TaskGroup() as group:
                runs = [
                    group.create_task(
                        closed_loop(self._engines[place], policy, requests, clients, window, partial(ended, place))
                    )
                    for place, policy in policies.items()
                ]
            return [run.result() for run in runs]
        finally:
            self._stop()

    def _start(self, places: list[int]) -> None:
        with self._between_forwards():
            self._places = places
            self._give(places[0])
        self._handing = asyncio.create_task(self._hand_over())

    def _leave(self, place: int) -> None:
        """Takes no more turns. When the last one leaves, all may go."""
        with self._between_forwards():
            if self._state[0] == place:
                self._give(self._next(place) if len(self._places) > 1 else None)
            self._places.remove(place)

    def _stop(self) -> None:
        if self._handing is not None:
            self._handing.cancel()
        with self._between_forwards():
            self._places = []
            self._give(None)

    @contextmanager
    def _between_forwards(self) -> Iterator[None]:
        """The condition, after the forward under way."""
        self._may_step.clear()
        with self._condition:
            self._may_step.set()
            yield

    async def _hand_over(self) -> None:
        while True:
            await asyncio.sleep(TURN_S)
            # An engine that is busy ends its turn itself, after its forward; one that is idle cannot.
            self._over = True
            if self._condition.acquire(blocking=False):
                try:
                    self._end_turn()
                finally:
                    self._condition.release()

    def _step(self, place: int, step: Step) -> list[tuple[Open, Event]]:
        self._may_step.wait()
        with self._condition:
            if self._state[0] == place:
                self._end_turn()
            self._condition.wait_for(lambda: self._state[0] in (None, place))
            return step()

    def _end_turn(self) -> None:
        """Gives the turn to the next one if it is over. The caller has the condition."""
        whose = self._state[0]
        if self._over and whose is not None:
            self._give(self._next(whose))

    def _next(self, place: int) -> int:
        return self._places[(self._places.index(place) + 1) % len(self._places)]

    def _give(self, whose: int | None) -> None:
        now = perf_counter()
        former, since, spent = self._state
        ran = [now - since if former in (None, place) else 0.0 for place in range(len(spent))]
        self._state = (whose, now, [before + more for before, more in zip(spent, ran, strict=True)])
        self._over = False
        self._condition.notify_all()
