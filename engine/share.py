"""What share of the time something takes, of late."""

from __future__ import annotations

from math import exp


class Share:
    """Seconds spent on something, by those that have passed; older ones fade with the time constant `over_s`.

    What had not begun yet counts as idle.
    """

    def __init__(self, over_s: float) -> None:
        self.over_s = over_s
        self._at_s = 0.0
        self._spent_s = 0.0

    def add(self, now_s: float, spent_s: float) -> None:
        """Counts `spent_s` that ended now, on a clock that only goes forward."""
        self._spent_s = self._left_s(now_s) + spent_s
        self._at_s = now_s

    def now(self, now_s: float) -> float:
        """The share, 0..1."""
        return min(1.0, self._left_s(now_s) / self.over_s)

    def _left_s(self, now_s: float) -> float:
        return self._spent_s * exp(min(0.0, self._at_s - now_s) / self.over_s)
