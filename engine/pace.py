"""Whether deadlines can be kept when everybody rides along, and on which rungs.

A sequence that still needs f forwards within t seconds can afford forwards of t / f seconds: its *pace*. The more
sequences ride, the longer a forward takes; a sequence for which it becomes too long steps to a rung that needs fewer
forwards, and takes more of each. One whose pace is looser than the forward need not ride in every one of them, so it
counts for as much as it needs: its *duty*. `ride` finds the shortest mean forward at which that comes to rest: the
least fixed point of a monotone map (Tarski), reached from below, because a longer forward never makes anybody step back
or ride less. Pure, seconds throughout.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

SAFETY = 1.3
"""By how much the time of what is left may exceed its prediction."""
RESERVE = 2.0
"""The same while a faster rung is left to step to: who comes next is not known, and time that was spent on a slow rung
does not come back."""


class Step(NamedTuple):
    """A rung as a rider sees it.

    Attributes:
        rung: its place in the ladder. tokens: per forward. rest: forwards lost in a last block that is not full.
        first_forwards: until the first text. own_s: what it adds to a forward, without the context.
    """

    rung: int
    tokens: float
    rest: float
    first_forwards: float
    own_s: float


@dataclass(frozen=True, slots=True)
class Rider:
    """A sequence with a deadline.

    Attributes:
        steps: the rungs that it may use, each needing fewer forwards than the one before, the preferred one first.
        tokens: output tokens that are left. left_s, first_left_s: seconds until its deadlines; None = none.
        context_s: what its context adds to a forward. prompt_forwards, prompt_s: chunks and seconds of unread prompt.
        share: of the time until its deadline that forwards may take.
    """

    steps: Sequence[Step]
    tokens: float
    left_s: float | None
    context_s: float = 0.0
    first_left_s: float | None = None
    prompt_forwards: float = 0.0
    prompt_s: float = 0.0
    share: float = 1.0

    def forwards(self, step: Step) -> float:
        """Forwards until its end on this rung."""
        return max(1.0, self.tokens / step.tokens + step.rest) + self.prompt_forwards

    def own_s(self, step: Step) -> float:
        """What it adds to each of them; its prompt is spread over all."""
        return step.own_s + self.context_s + self.prompt_s / self.forwards(step)

    def pace_s(self, step: Step, margin: float = SAFETY) -> float:
        """The longest forward with which this rung keeps its deadlines; inf without one, 0 when one has passed."""
        pace_s = float("inf")
        if self.left_s is not None:
            pace_s = self.left_s / self.forwards(step)
        if self.first_left_s is not None:
            # The prompt's own work is not spread over what comes after the first text.
            forwards = step.first_forwards + self.prompt_forwards
            pace_s = min(pace_s, (self.first_left_s - self.prompt_s) / forwards)
        return max(pace_s, 0.0) * self.share / margin

    def taken_s(self, step: Step, forward_s: float) -> float:
        """What it adds to the mean forward when forwards take `forward_s`: as often as its pace asks for."""
        pace_s = self.pace_s(step, RESERVE)
        return self.own_s(step) * (1.0 if pace_s <= forward_s else forward_s / pace_s)

    def place_at(self, forward_s: float, first: int = 0) -> int | None:
        """The first place in `steps`, from `first` on, that keeps the deadlines with forwards of `forward_s`."""
        last = len(self.steps) - 1
        for place in range(first, last + 1):
            if forward_s <= self.pace_s(self.steps[place], SAFETY if place == last else RESERVE):
                return place
        return last if forward_s <= self.pace_s(self.steps[last]) else None


@dataclass(frozen=True, slots=True)
class Ride:
    """The mean forward of riders who all take part as often as they need.

    Attributes:
        forward_s: how long it takes. places: of each rider in its steps. late: riders that keep no deadline with it.
    """

    forward_s: float
    places: list[int]
    late: list[int]


ENOUGH = 1e-3
"""Relative change of the forward at which the iteration ends."""


def ride(riders: Sequence[Rider], fixed_s: float) -> Ride:
    """The shortest mean forward in which every rider, late ones apart, keeps its deadlines.

    `fixed_s`: base of a forward and what rides in it anyway. A late rider rides on its fastest rung, in every forward.
    """
    places = [0] * len(riders)
    forward_s = fixed_s
    while True:
        late: list[int] = []
        moved = False
        longer_s = fixed_s
        for index, rider in enumerate(riders):
            found = rider.place_at(forward_s, places[index])
            if found is None:
                late.append(index)
                found = len(rider.steps) - 1
            moved = moved or found != places[index]
            places[index] = found
            longer_s += rider.taken_s(rider.steps[found], forward_s)
        if not moved and longer_s <= forward_s * (1 + ENOUGH):
            return Ride(forward_s, places, late)
        forward_s = max(forward_s, longer_s)
