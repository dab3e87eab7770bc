"""By how much forwards of one kind differ from the fitted cost of a forward.

A forward's time is not quite linear in what is in it: products have steps, caches end, attention runs per shape.
Between rungs that the fit finds equal such a difference of a few percent decides. So for every length of canvas and
number of sequences (by powers of two) what was measured over what was fitted is remembered, beside the machine's speed.
"""

from __future__ import annotations

import math
from typing import Any

Kind = tuple[int, int]
"""Length of most canvases, and the power of two nearest to the number of sequences."""
MIXED = 0
"""Instead of a length: canvases of several lengths, or prompts."""

PRIOR_WEIGHT = 20
"""Forwards that the fit itself counts for: a few cold ones say little."""
LONGEST_MEMORY = 2000
"""Forwards that the past counts for at most: a kind's trait lasts, while the machine's speed wanders for seconds."""
NEWEST = 0.02
"""Weight of the newest forward in the machine's speed and in what has run lately: more than in any kind's own value,
so that a slower machine is not taken for a trait of the kinds that happen to run."""


class Deviations:
    """Measured over fitted durations by kind of forward; 1 where nothing was seen."""

    def __init__(self) -> None:
        self._seen: dict[Kind, tuple[float, int]] = {}  # deviation, forwards
        self._machine = 1.0  # present durations over fitted ones, deviations apart
        self._present = 1.0  # mean deviation of what has run lately

    def observe(self, kind: Kind, ratio: float) -> None:
        """Counts one forward. `ratio`: its duration over the fitted one."""
        value, count = self._seen.get(kind, (1.0, 0))
        self._machine += NEWEST * (ratio / value - self._machine)
        value += (ratio / self._machine - value) / min(PRIOR_WEIGHT + count, LONGEST_MEMORY)
        self._seen[kind] = (value, count + 1)
        self._present += NEWEST * (value - self._present)

    def rebase(self) -> float:
        """How much slower than the fit the machine is now; from here on the fit is taken to say so."""
        slower = self._machine * self._present
        self._seen = {kind: (value / self._present, count) for kind, (value, count) in self._seen.items()}
        self._machine = self._present = 1.0
        return slower

    def relative(self, block_length: int, sequences: int) -> float:
        """How much longer than what has run lately such forwards are, beside what the fit says of both."""
        value, _ = self._seen.get(kind_of(block_length, sequences), (1.0, 0))
        return value / self._present

    def to_dict(self) -> dict[str, Any]:
        """State as plain JSON."""
        return {
            "machine": self._machine,
            "present": self._present,
            "seen": [[*kind, *values] for kind, values in self._seen.items()],
        }

    @staticmethod
    def from_dict(data: dict[str, Any]) -> Deviations:
        """Goes on from saved state. Raises KeyError, TypeError or ValueError on data of another shape."""
        made = Deviations()
        made._machine = float(data["machine"])
        made._present = float(data["present"])
        made._seen = {
            (int(length), int(power)): (float(value), int(count)) for length, power, value, count in data["seen"]
        }
        return made


def kind_of(block_length: int, sequences: int) -> Kind:
    """The kind of a forward of so many sequences, most of them with canvases of this length."""
    return block_length, round(math.log2(max(sequences, 1)))
