"""Deadlines that are hopeless: which to put off, and until when.

Everybody with a deadline rides along, so one that cannot be kept takes forwards from those that can. It makes room for
them; but an answer that is late should be late by little, and not wait until nobody else has a deadline.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from math import inf
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from engine.outlook import View
    from engine.sequence import Sequence

LATER = 4.0
"""What has missed its deadline is to be done as if it rode in every so many forwards: the rest is for those who can be
kept."""


def put_off_lost(look: Callable[[], View], now: float) -> View:
    """Puts off every deadline that is hopeless; returns what is seen after that.

    Args:
        look: looks at the sequences as they are by then. now: engine clock, seconds.
    """
    view = look()
    lost: list[Lost] = []
    # Everybody has two deadlines at most.
    while len(lost) < 2 * len(view.timed) and (one := first_lost(view)) is not None:
        # Until it is known what the others leave.
        one.sequence.put_off(inf, one.first)
        lost.append(one)
        view = look()
    if lost:
        for one, left_s in zip(lost, put_off_s(view, lost), strict=True):
            one.sequence.put_off(now + left_s, one.first)
        view = look()
    return view


class Lost(NamedTuple):
    """A deadline that is hopeless: of the whole answer, or of its `first` text.

    Attributes:
        forwards: that it still needs. own_s: what the sequence adds to each.
    """

    sequence: Sequence
    first: bool
    forwards: float
    own_s: float


def first_lost(view: View) -> Lost | None:
    """The deadline that should be put off first, None where all are kept.

    Of those that are late the one of the smallest weight, then the one with most tokens to go.
    """
    late = view.ride.late.nonzero()[0].tolist()
    if not late:
        return None
    riders, ride, timed = view.riders, view.ride, view.timed
    index = min(late, key=lambda index: (timed[index].plan.weight, -riders.tokens[index]))
    # As `Pacing` reckons.
    step = view.table.steps[riders.ladder[index]][ride.places[index]]
    prompt_forwards, prompt_s = float(riders.prompt_forwards[index]), float(riders.prompt_s[index])
    forwards = max(1.0, float(riders.tokens[index]) / step.tokens + step.rest) + prompt_forwards
    until_first = step.first_forwards + prompt_forwards
    first = bool((riders.first_left_s[index] - prompt_s) * forwards < riders.left_s[index] * until_first)
    needed = until_first if first else forwards
    own_s = step.own_s + float(riders.context_s[index]) + prompt_s / needed
    return Lost(timed[index], first, needed, own_s)


def put_off_s(view: View, lost: Seq[Lost]) -> list[float]:
    """In how many seconds each of `lost` is to be done, whom the riders of `view` leave behind."""
    forward_s = view.ride.forward_s + sum(one.own_s for one in lost) / LATER
    return [LATER * forward_s * one.forwards for one in lost]
