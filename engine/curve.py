"""What riders add to the mean forward, as a function of how long it is: straight pieces (`engine/pace.py`).

Who has to ride as often as a pace asks for adds more, the longer a forward is; who rides in every one adds the same,
until a longer one makes it take another step. So the sum is straight between two such lengths, and the shortest forward
that holds what is added to it is found exactly, in one pass over the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from math import inf
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Changes(NamedTuple):
    """Lengths of a forward beyond which what is added goes on in another straight line, in any order.

    Attributes:
        at_s: the lengths. level_s, growth: what changes there of level + growth * length.
    """

    at_s: Floats
    level_s: Floats
    growth: Floats


class Curve:
    """What riders add to a forward, for lengths from the least of the changes on.

    A change takes effect beyond its length, not at it. Where several curves are joined, only what is longer than the
    least length of each counts.
    """

    def __init__(self, changes: Changes) -> None:
        # Those without end come last, and change nothing.
        order = changes.at_s.argsort()[: np.count_nonzero(changes.at_s < inf)]
        self._sorted = Changes(*(values.take(order) for values in changes))

    def with_changes(self, changes: Changes) -> Curve:
        """The curve with what others add."""
        return Curve(joined((self._sorted, changes)))

    @cached_property
    def _pieces(self) -> tuple[Floats, Floats, Floats, Floats]:
        """Of every piece: beyond which length it begins, up to which it goes, its level and its growth."""
        starts_s = self._sorted.at_s
        ends_s = np.append(starts_s[1:], inf)
        return starts_s, ends_s, self._sorted.level_s.cumsum(), self._sorted.growth.cumsum()

    def rest_s(self, fixed_s: float) -> float:
        """The shortest forward that holds `fixed_s` and what is added to it."""
        starts_s, ends_s, levels_s, growths = self._pieces
        if not len(starts_s):
            return fixed_s
        # Where a piece begins there may be room at once: before it somebody took a step that adds more.
        begins_s = np.nextafter(starts_s, inf)
        taken_s = fixed_s + levels_s
        # A growth of 1 or more leaves no more room in a longer forward.
        rests_s = taken_s / np.maximum(1.0 - growths, 1e-300)
        found_s = np.where(taken_s + growths * starts_s <= starts_s, begins_s, rests_s)
        first = ((found_s <= ends_s) & (begins_s <= ends_s)).argmax()
        return max(fixed_s, float(found_s[first]))

    def room_s(self, fixed_s: float, longer_s: float, most_s: float) -> float:
        """The most that is left of a forward longer than `longer_s`, at most `most_s` (finite), with so much fixed."""
        starts_s, ends_s, levels_s, growths = self._pieces
        here = (starts_s < most_s) & (ends_s > longer_s) & (ends_s > starts_s)
        lengths_s = np.minimum(ends_s, most_s)
        left_s = lengths_s - fixed_s - levels_s - growths * lengths_s
        return float(max(0.0, left_s.max(initial=0.0, where=here)))


def joined(changes: Iterable[Changes]) -> Changes:
    """The changes of several."""
    return Changes(*(np.concatenate(values) for values in zip(*changes, strict=True)))
