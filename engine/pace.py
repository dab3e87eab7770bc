"""Whether deadlines can be kept when everybody rides along, and on which rungs.

A sequence that still needs f forwards within t seconds can afford forwards of t / f seconds: its *pace*. The more
sequences ride, the longer a forward takes; a sequence for which it becomes too long steps to a rung that needs fewer
forwards, and takes more of each. One whose pace is looser than the forward need not ride in every one of them, so it
counts for as much as it needs: its *duty*. `ride` finds the shortest mean forward that holds what all of them add to it
(`engine/curve.py`). Pure, seconds throughout; arrays, because it runs before every forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from engine.curve import Changes, Curve, Floats

SAFETY = 1.15
"""By how much the time of what is left may exceed its prediction."""
KEPT = 1.05
"""`SAFETY` for what was let in before: no newcomer may bring it below. A loose deadline rides so much more often than
it has to: it can wait while others are tight, as long as there is time."""
LOST = 0.6
"""A deadline counts as lost when it needs forwards that are shorter than so much of the mean one; its time then goes to
the others. Predictions are wrong by tens of percent: what is late by less is kept, and is mostly in time after all."""


def reserve(timed_share: float) -> float:
    """`SAFETY` while there is a rung to step to that leaves more room: who comes next is not known, and time that was
    spent on a slow rung does not come back. They will take about the share of the time that deadlines took of late.
    """
    return SAFETY * (1.0 + timed_share)


MOST_RESERVE = reserve(1.0)


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


_STEP = np.dtype([(name, np.float64) for name in Step._fields])


class StepTable:
    """Steps of several ladders, rows filled up with their last step.

    Attributes:
        steps: as they were given. records: `Step`s `[ladders, steps]`. last: int64 `[ladders]`, the place of the last.
    """

    def __init__(self, ladders: Sequence[Sequence[Step]]) -> None:
        width = max((len(steps) for steps in ladders), default=1)
        rows = [[*steps, *[steps[-1]] * (width - len(steps))] for steps in ladders]
        self.steps = list(ladders)
        self.records: NDArray[Any] = np.array(rows, dtype=_STEP).reshape(len(ladders), width)
        self.last = np.array([len(steps) - 1 for steps in ladders], dtype=np.int64)


@dataclass(slots=True)
class Riders:
    """Sequences with a deadline, an entry each; times in seconds, inf where there is no such deadline.

    Attributes:
        ladder: row of the table with the rungs that it may use. first: step to begin with.
        tokens: output tokens that are left. left_s, first_left_s: until its deadlines.
        context_s: what its context adds to a forward. prompt_forwards, prompt_s: chunks and seconds of unread prompt.
        share: of the time until its deadline that forwards may take. reserve: see the function.
    """

    ladder: NDArray[np.int64]
    first: NDArray[np.int64]
    tokens: Floats
    left_s: Floats
    first_left_s: Floats
    context_s: Floats
    prompt_forwards: Floats
    prompt_s: Floats
    share: Floats
    reserve: Floats

    def __len__(self) -> int:
        return len(self.ladder)


_NO_FLAGS = np.empty(0, dtype=np.bool_)
NOBODY = Riders(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64), *(np.zeros(0) for _ in range(8)))


class Ride:
    """The mean forward of riders who all take part as often as they need.

    Attributes:
        forward_s: how long it takes. places: int64 `[riders]`, each one's step.
        tight, late: bool `[riders]`, whose deadlines are kept without the margin `SAFETY` at most, and whose are lost.
        pace_s: the longest forward that keeps its deadlines on that step, inf without one.
    """

    def __init__(
        self,
        forward_s: float,
        places: NDArray[np.int64],
        tight: NDArray[np.bool_],
        late: NDArray[np.bool_],
        pace_s: Floats,
    ) -> None:
        self.forward_s = forward_s
        self.places = places
        self.tight = tight
        self.late = late
        self.pace_s = pace_s


class Pacing:
    """Riders' paces on every step of their ladders: all that a ride needs, worked out once.

    Attributes:
        pace_s: `[riders, steps]`, the longest forward that keeps the deadlines on that step.
        quickest: int64 `[riders]`, the step with the most room, for those whom none suits.
        most_s, lost_s: `[riders]`, the longest forward that keeps each one's deadlines with the margin `KEPT`, and the
            longest before they are lost.
    """

    def __init__(self, riders: Riders, table: StepTable, least_s: float) -> None:
        """`least_s`: no forward is shorter."""
        count, width = len(riders), table.records.shape[1]
        self._least_s = float(least_s)
        self.pace_s: Floats = np.empty((count, width))
        self.quickest: NDArray[np.int64] = np.empty(count, dtype=np.int64)
        self.most_s, self.lost_s = np.empty((2, count))
        # One more column, which fits any forward: where no step does, the quickest.
        self._limits_s, self._needed_s, self._owns_s = np.empty((3, count, width + 1))
        if not count:
            return
        # Here and not at import: who only needs the constants does without Numba.
        from engine.pace_arithmetic import fill_pacing

        fill_pacing(
            self.pace_s, self.quickest, self.most_s, self.lost_s, self._limits_s, self._needed_s, self._owns_s,
            table.records, table.last, riders.ladder, riders.first, riders.tokens, riders.left_s, riders.first_left_s,
            riders.context_s, riders.prompt_forwards, riders.prompt_s, riders.share, riders.reserve,
            SAFETY, KEPT, LOST,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.quickest)

    def changes(self, riders: slice = slice(None)) -> Changes:
        """Of what some of the riders add to a forward, each on its step for it and as often as its pace asks for."""
        if not len(self):
            return Changes(*np.empty((3, 0)))
        from engine.pace_arithmetic import fill_changes

        limits_s, needed_s, owns_s = self._limits_s[riders], self._needed_s[riders], self._owns_s[riders]
        # A step has at most a beginning and a turn, and all first ones begin together.
        found = np.empty((3, 2 * limits_s.size + 1))
        count = fill_changes(found, limits_s, needed_s, owns_s, self._least_s)
        return Changes(*found[:, :count])

    def may_fit(self, forward_s: float, most_s: float) -> list[int]:
        """For a single rider: steps on which it may be in time beside others with a mean forward of `forward_s`, whom
        more than `most_s` would make late.

        By a lower bound of the forward with it: it makes nobody else ride less.
        """
        limits_s, owns_s, needed_s = self._limits_s[0, :-1], self._owns_s[0, :-1], self._needed_s[0, :-1]
        least_s = forward_s + owns_s * np.minimum(1.0, forward_s / np.maximum(needed_s, self._least_s))
        found: list[int] = (least_s <= np.minimum(limits_s, most_s)).nonzero()[0].tolist()
        return found

    def ride(self, forward_s: float) -> Ride:
        """The riders in forwards of this length."""
        count = len(self)
        if not count:
            return Ride(forward_s, NOBODY.ladder, _NO_FLAGS, _NO_FLAGS, NOBODY.tokens)
        from engine.pace_arithmetic import fill_ride

        places, pace_s = np.empty(count, dtype=np.int64), np.empty(count)
        tight, late = np.empty((2, count), dtype=np.bool_)
        fill_ride(
            places, tight, late, pace_s, self._limits_s, self.pace_s, self.quickest, float(forward_s), SAFETY, LOST
        )
        return Ride(forward_s, places, tight, late, pace_s)


NO_STEPS = StepTable([])
NO_PACING = Pacing(NOBODY, NO_STEPS, 0.0)
NO_CURVE = Curve(NO_PACING.changes())


def longest_s(parts: Sequence[Pacing], forward_s: float) -> float:
    """The longest forward in which every rider is as well off as in one of `forward_s`: within its margin, or not lost;
    inf where none can be worse off.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return inf
    limits_s = np.concatenate([np.where(part.most_s >= forward_s, part.most_s, part.lost_s) for part in parts])
    return float(limits_s.min(initial=inf, where=limits_s >= forward_s))


def ride(riders: Riders, table: StepTable, fixed_s: float) -> Ride:
    """Riders in their shortest mean forward, beside so much. A tight one rides on the step of its loosest pace."""
    pacing = Pacing(riders, table, fixed_s)
    return pacing.ride(Curve(pacing.changes()).rest_s(fixed_s))
