"""What riders add to the mean forward, as a function of how long it is: straight pieces (`engine/pace.py`).

Who has to ride as often as a pace asks for adds more, the longer a forward is; who rides in every one adds the same,
until a longer one makes it take another step. So the sum is straight between two such lengths, and the shortest forward
that holds what is added to it is found exactly, in one pass over the pieces.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


class Changes(NamedTuple):
    """Lengths of a forward beyond which what is added goes on in another straight line, in any order.

    Attributes:
        at_s: the lengths, finite. level_s, growth: what changes there of level + growth * length.
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
        order = changes.at_s.argsort()
        self._sorted = Changes(*(values.take(order) for values in changes))

    def with_changes(self, changes: Changes) -> Curve:
        """The curve with what others add."""
        return Curve(joined((self._sorted, changes)))

    def rest_s(self, fixed_s: float) -> float:
        """The shortest forward that holds `fixed_s` and what is added to it."""
        if not len(self._sorted.at_s):
            return fixed_s
        from engine.pace_arithmetic import rest_s

        return rest_s(*self._sorted, float(fixed_s))

    def room_s(self, fixed_s: float, longer_s: float, most_s: float) -> float:
        """The most that is left of a forward longer than `longer_s`, at most `most_s` (finite), with so much fixed."""
        from engine.pace_arithmetic import room_s

        return room_s(*self._sorted, float(fixed_s), float(longer_s), float(most_s))


def joined(changes: Iterable[Changes]) -> Changes:
    """The changes of several."""
    return Changes(*(np.concatenate(values) for values in zip(*changes, strict=True)))
