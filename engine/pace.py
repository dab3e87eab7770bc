"""Whether deadlines can be kept when everybody rides along, and on which rungs.

A sequence that still needs f forwards within t seconds can afford forwards of t / f seconds: its *pace*. The more
sequences ride, the longer a forward takes; a sequence for which it becomes too long steps to a rung that needs fewer
forwards, and takes more of each. One whose pace is looser than the forward need not ride in every one of them, so it
counts for as much as it needs: its *duty*. `ride` finds the shortest mean forward at which that comes to rest: the
least fixed point of a monotone map (Tarski), reached from below, because a longer forward never makes anybody step back
or ride less. Pure, seconds throughout; arrays, because it runs before every forward.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SAFETY = 1.15
"""By how much the time of what is left may exceed its prediction."""
KEPT = 1.05
"""`SAFETY` for what was let in before: no newcomer may bring it below. A loose deadline rides so much more often than
it has to: it can wait while others are tight, as long as there is time."""
LOST = 0.6
"""A deadline counts as lost when it needs forwards that are shorter than so much of the mean one; its time then goes to
the others. Predictions are wrong by tens of percent: what is late by less is kept, and is mostly in time after all."""
ENOUGH = 0.003
"""Relative change of the forward at which the iteration ends."""
MOST_ROUNDS = 60
MOST_LOOKS = 8
"""Forwards that are looked at, of those at which one of many riders takes another step."""


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


class StepTable:
    """Steps of several ladders as arrays `[ladders, steps]`, rows filled up with their last step."""

    def __init__(self, ladders: Sequence[Sequence[Step]]) -> None:
        width = max((len(steps) for steps in ladders), default=1)
        rows = [[*steps, *[steps[-1]] * (width - len(steps))] for steps in ladders]
        table = np.array(rows, dtype=np.float64).reshape(len(ladders), width, len(Step._fields))
        self.steps = list(ladders)
        self.last = np.array([len(steps) - 1 for steps in ladders], dtype=np.int64)
        _, self.tokens, self.rest, self.first_forwards, self.own_s = (table[:, :, place] for place in range(5))


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

    def __init__(self, riders: Riders, table: StepTable) -> None:
        count, rows = len(riders), riders.ladder
        prompt_forwards, prompt_s = riders.prompt_forwards[:, None], riders.prompt_s[:, None]
        forwards = np.maximum(1.0, riders.tokens[:, None] / table.tokens[rows] + table.rest[rows]) + prompt_forwards
        own_s = table.own_s[rows] + riders.context_s[:, None] + prompt_s / forwards
        # The prompt's own work is not spread over what comes after the first text.
        until_first = (riders.first_left_s[:, None] - prompt_s) / (table.first_forwards[rows] + prompt_forwards)
        pace_s = np.maximum(np.minimum(riders.left_s[:, None] / forwards, until_first), 0.0) * riders.share[:, None]
        steps = np.arange(pace_s.shape[1])
        # What a step leaves of a forward to the others. It is not always the last one that leaves most: it takes more
        # itself, and short answers and first texts pay for a whole large block.
        limit_s = pace_s / SAFETY
        room_s = limit_s - own_s
        most_s = np.maximum.accumulate(room_s[:, ::-1], axis=1)[:, ::-1]
        reserved_s = pace_s[:, :-1] / riders.reserve[:, None]
        limit_s[:, :-1] = np.where(most_s[:, 1:] > room_s[:, :-1], reserved_s, limit_s[:, :-1])
        limit_s[(steps < riders.first[:, None]) | (steps > table.last[rows][:, None])] = -1.0
        self.pace_s: Floats = pace_s
        # Of equals the later one: when all is lost, the fewest forwards.
        self.quickest: NDArray[np.int64] = steps[-1] - limit_s[:, ::-1].argmax(axis=1)
        self._everyone = np.arange(count)
        last_s = pace_s[self._everyone, self.quickest]
        self.most_s: Floats = np.maximum(limit_s.max(axis=1), last_s / KEPT)
        self.lost_s: Floats = last_s / LOST
        # One more column, which fits any forward: where no step does, the quickest. Rows behind one another for `take`.
        self._columns = len(steps) + 1
        self._limits_s = np.column_stack((limit_s, np.full(count, np.inf)))
        spare = self._everyone, self.quickest
        self._needed_s = np.maximum(np.column_stack((pace_s, last_s)) / KEPT, 1e-9).ravel()
        self._owns_s = np.column_stack((own_s, own_s[spare])).ravel()
        self._starts = self._everyone * self._columns

    def __len__(self) -> int:
        return len(self._everyone)

    @property
    def ends_s(self) -> Floats:
        """The longest forwards of all riders' steps, in no order."""
        return self._limits_s.ravel()

    def added_s(self, forward_s: float) -> tuple[float, float, float]:
        """What the riders add to a forward that is so long, each on its step for it.

        Also how that grows with the forward, at most, until one of them takes another step, and where that is. One
        whose pace is looser than the forward waits while others are tight: it rides as often as that asks for.
        """
        at = (self._limits_s >= forward_s).argmax(axis=1) + self._starts
        owns_s, needed_s = self._owns_s.take(at), self._needed_s.take(at)
        duty = np.minimum(1.0, forward_s / needed_s)
        growth = float((owns_s / needed_s) @ (duty < 1.0))
        return float(owns_s @ duty), growth, float(self._limits_s.take(at).min())

    def added_at_s(self, forwards_s: Floats) -> Floats:
        """What the riders add to forwards of several lengths, each on its step for it."""
        at = (self._limits_s >= forwards_s[:, None, None]).argmax(axis=2) + self._starts
        duty = np.minimum(1.0, forwards_s[:, None] / self._needed_s.take(at))
        added_s: Floats = (self._owns_s.take(at) * duty).sum(axis=1)
        return added_s

    def may_fit(self, forward_s: float, most_s: float) -> list[int]:
        """For a single rider: steps on which it may be in time beside others with a mean forward of `forward_s`, whom
        more than `most_s` would make late.

        By a lower bound of the forward with it: it makes nobody else ride less.
        """
        limits_s, width = self._limits_s[0, :-1], self._columns - 1
        least_s = forward_s + self._owns_s[:width] * np.minimum(1.0, forward_s / self._needed_s[:width])
        found: list[int] = (least_s <= np.minimum(limits_s, most_s)).nonzero()[0].tolist()
        return found

    def ride(self, forward_s: float) -> Ride:
        """The riders in forwards of this length."""
        if not len(self):
            return Ride(forward_s, NOBODY.ladder, _NO_FLAGS, _NO_FLAGS, NOBODY.tokens)
        places = (self._limits_s >= forward_s).argmax(axis=1)
        tight: NDArray[np.bool_] = places == self._columns - 1
        places = np.where(tight, self.quickest, places)
        chosen_s = self.pace_s[self._everyone, places]
        return Ride(forward_s, places, tight, tight & (chosen_s < LOST * forward_s), chosen_s / SAFETY)


_NO_FLAGS = np.zeros(0, dtype=np.bool_)
NO_STEPS = StepTable([])
NO_PACING = Pacing(NOBODY, NO_STEPS)


def mean_forward_s(parts: Sequence[Pacing], fixed_s: float, least_s: float = 0.0, most_s: float = inf) -> float:
    """The shortest mean forward in which every rider of all parts, late ones apart, keeps its deadlines.

    Args:
        fixed_s: base of a forward and what rides in it anyway. least_s: a length that is known to be too short, as that
            of some of the riders alone.
    """
    parts = [part for part in parts if len(part)]
    forward_s = max(fixed_s, least_s)
    surely_s, guessed, straight = forward_s, False, True
    for _ in range(MOST_ROUNDS if parts else 0):
        added_s, growths, ends_s = zip(*(part.added_s(forward_s) for part in parts), strict=True)
        longer_s = fixed_s + sum(added_s)
        if guessed and longer_s < forward_s * (1 - 1e-6):
            # Beyond the rest: before it, somebody began to ride all the time.
            forward_s, guessed, straight = surely_s, False, False
            continue
        if longer_s <= forward_s * (1 + ENOUGH):
            break
        if longer_s > most_s:
            return inf
        # As long as nobody takes another step, the map bends only towards its rest: a straight line is a guess at it
        # that shows when it was too far. Close to saturation, small steps would be many.
        growth = sum(growths)
        rest_s = forward_s + (longer_s - forward_s) / (1 - growth) if straight and growth < 1 else 0.0
        surely_s, straight = longer_s, True
        forward_s = max(longer_s, min(rest_s, *ends_s))
        guessed = forward_s > longer_s
    return forward_s if forward_s <= most_s else inf


def longest_s(parts: Sequence[Pacing], forward_s: float) -> float:
    """The longest forward in which every rider is as well off as in one of `forward_s`: within its margin, or not lost;
    inf where none can be worse off.
    """
    parts = [part for part in parts if len(part)]
    if not parts:
        return inf
    limits_s = np.concatenate([np.where(part.most_s >= forward_s, part.most_s, part.lost_s) for part in parts])
    return float(limits_s.min(initial=inf, where=limits_s >= forward_s))


def room_s(parts: Sequence[Pacing], fixed_s: float, forward_s: float, most_s: float) -> float:
    """What a newcomer may add to the mean forward, seconds; inf where nobody minds.

    A longer forward makes others ride more often, so that the most is not what lies between `forward_s` and `most_s`,
    but what the others leave of the forward between them that they leave most of. Until one of them takes another step
    what they add bends downwards, so that this is one at which somebody is about to, or `most_s`.
    """
    parts = [part for part in parts if len(part)]
    if not parts or most_s == inf:
        return inf
    ends_s = np.unique(np.concatenate([part.ends_s for part in parts]))
    ends_s = ends_s[(ends_s > forward_s) & (ends_s < most_s)]
    if len(ends_s) > MOST_LOOKS:
        ends_s = ends_s[np.linspace(0, len(ends_s) - 1, MOST_LOOKS).astype(int)]
    lengths_s = np.append(ends_s, most_s)
    added_s: Floats = sum((part.added_at_s(lengths_s) for part in parts), np.zeros(len(lengths_s)))
    return float(max(0.0, (lengths_s - fixed_s - added_s).max()))


def ride(riders: Riders, table: StepTable, fixed_s: float) -> Ride:
    """Riders in their shortest mean forward (`mean_forward_s`). A tight one rides on the step of its loosest pace."""
    pacing = Pacing(riders, table)
    return pacing.ride(mean_forward_s([pacing], fixed_s))
