"""What was seen of finished requests: output lengths, latencies against their predictions, the cost of the HTTP path.

Prompts do not tell how long their answers get, so a plan bounds the length by `max_tokens` and expects what answers to
prompts of about the same length had (performance notes: steps and lengths cannot be predicted at admission).
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

ENOUGH = 20
MOST_HISTOGRAMS = 4096


def quantile(values: list[float], q: float) -> float:
    """The smallest value with at least a share `q` of `values` at or below it."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


class Quantile:
    """A quantile of the last `window` values; until `enough` were seen, not below `prior`."""

    def __init__(self, prior: float, q: float = 0.95, window: int = 200, enough: int = ENOUGH) -> None:
        self.prior = prior
        self.q = q
        self.enough = enough
        self._values: deque[float] = deque(maxlen=window)
        self._value = prior

    def observe(self, value: float) -> None:
        self._values.append(value)
        measured = quantile(list(self._values), self.q)
        self._value = measured if len(self._values) >= self.enough else max(self.prior, measured)

    @property
    def value(self) -> float:
        return self._value

    @property
    def sure(self) -> bool:
        """Whether enough values were seen for the prior not to matter any more."""
        return len(self._values) >= self.enough


@dataclass(frozen=True, slots=True)
class Length:
    """Output tokens to expect of one answer.

    Attributes:
        median: p50. reckoned: p95, what a promise has to reckon with; both within the request's own limits.
        source: where they come from, in words.
    """

    median: int
    reckoned: int
    source: str


class _Histogram:
    """p50 and p95 of the last answers of one kind."""

    __slots__ = ("_values", "median", "reckoned")

    def __init__(self) -> None:
        self._values: deque[int] = deque(maxlen=200)
        self.median = self.reckoned = 0

    def observe(self, tokens: int) -> None:
        self._values.append(tokens)
        ordered = sorted(self._values)
        self.median = ordered[(len(ordered) - 1) // 2]
        self.reckoned = ordered[max(0, math.ceil(0.95 * len(ordered)) - 1)]

    def __len__(self) -> int:
        return len(self._values)


class OutputLengths:
    """Histograms of output tokens by tier, rung and prompt length (powers of two).

    The finest one with enough answers is used: tier, rung and prompt length; then tier and prompt length; then prompt
    length; before that `prior_tokens`.
    """

    def __init__(self, prior_tokens: int, enough: int = ENOUGH) -> None:
        self.prior_tokens = prior_tokens
        self.enough = enough
        self._seen: dict[tuple[str, str, int], _Histogram] = {}

    def observe(self, prompt_tokens: int, output_tokens: int, tier: str = "", rung: str = "") -> None:
        """Counts an answer that ended by itself (see `observe_cut` for the others)."""
        bucket = prompt_tokens.bit_length()
        for key in {(tier, rung, bucket), (tier, "", bucket), ("", "", bucket)}:
            if key not in self._seen:
                if len(self._seen) >= MOST_HISTOGRAMS:
                    continue
                self._seen[key] = _Histogram()
            self._seen[key].observe(output_tokens)

    def observe_cut(self, prompt_tokens: int, output_tokens: int, tier: str = "", rung: str = "") -> None:
        """Counts an answer that its limit ended: it would have been longer, so it only counts where it is long already.

        Otherwise many small `max_tokens` would make long answers look rare.
        """
        if output_tokens > self.expect(prompt_tokens, 1 << 62, tier, rung).reckoned:
            self.observe(prompt_tokens, output_tokens, tier, rung)

    def expect(self, prompt_tokens: int, max_tokens: int, tier: str = "", rung: str = "", least: int = 1) -> Length:
        """What an answer's length will be.

        Args:
            max_tokens: its bound. rung: name of the rung, `policy_name`. least: tokens that it has in any case.
        """
        return self.expect_each(prompt_tokens, max_tokens, tier, (rung,), least)[0]

    def expect_each(
        self, prompt_tokens: int, max_tokens: int, tier: str, rungs: Sequence[str], least: int = 1
    ) -> tuple[Length, ...]:
        """`expect` on several rungs: what does not depend on them is found once."""
        low = max(1, min(least, max_tokens))
        if low >= max_tokens:
            return (Length(max_tokens, max_tokens, f"{max_tokens} tokens, which the request fixes"),) * len(rungs)
        bucket = prompt_tokens.bit_length()
        whole: Length | None = None
        found = []
        for rung in rungs:
            length = self._seen_length((tier, rung, bucket), "this tier, rung", low, max_tokens)
            if length is None:
                length = whole = whole or self._on_any_rung(tier, bucket, low, max_tokens)
            found.append(length)
        return tuple(found)

    def _on_any_rung(self, tier: str, bucket: int, low: int, max_tokens: int) -> Length:
        """From the coarser histograms, or without any."""
        for key, words in (((tier, "", bucket), "this tier"), (("", "", bucket), "any tier")):
            length = self._seen_length(key, words, low, max_tokens)
            if length is not None:
                return length
        if max_tokens <= max(self.prior_tokens, low):
            return Length(max_tokens, max_tokens, f"max_tokens {max_tokens}; too few answers seen")
        value = max(self.prior_tokens, low)
        return Length(value, value, f"expected_output_tokens {self.prior_tokens} of the settings; too few answers seen")

    def _seen_length(self, key: tuple[str, str, int], words: str, low: int, max_tokens: int) -> Length | None:
        """From one histogram, if it has enough answers. `low`, `max_tokens`: bounds of the request."""
        seen = self._seen.get(key)
        if seen is None or len(seen) < self.enough:
            return None
        median, reckoned = (min(max(value, low), max_tokens) for value in (seen.median, seen.reckoned))
        bound = f", bounded by max_tokens {max_tokens}" if seen.reckoned > max_tokens else ""
        return Length(median, reckoned, f"{len(seen)} answers of {words} and prompt length{bound}")

    def bound(self, prompt_tokens: int, max_tokens: int) -> int:
        """Output tokens that a plan should reckon with, whatever its tier and rung."""
        return self.expect(prompt_tokens, max_tokens).reckoned


class Calibration:
    """Actual latencies over the p95 that was predicted: what predictions still have to be multiplied with.

    By tier and whether there is a deadline, because the engine lets loose deadlines wait for tight ones, and by mode.
    Only a prediction whose rung was kept is judged. It corrects what is promised, not what is feasible: that is
    reckoned as the replicas' last word reckons it.
    """

    LEAST, MOST = 0.4, 3.0
    """Predictions that fail by more say nothing about the next one: the machine stalled."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, bool, str], Quantile] = {}

    def observe(self, tier: str, bounded: bool, mode: str, actual_over_predicted: float) -> None:
        """Counts an answer.

        Args:
            bounded: whether it had a deadline.
            actual_over_predicted: engine seconds over the engine's predicted p95, before this correction.
        """
        self._seen.setdefault((tier, bounded, mode), Quantile(1.0, window=100)).observe(actual_over_predicted)

    def scale(self, tier: str, bounded: bool, mode: str) -> float:
        seen = self._seen.get((tier, bounded, mode))
        # A few answers say little about a p95, and one stall among them would lengthen every prediction.
        return min(max(seen.value, self.LEAST), self.MOST) if seen is not None and seen.sure else 1.0


MOST_TAIL = 3.0
"""Predictions that fail by more than this say nothing about the next one: the machine stalled."""
TAIL_EVERY_S = 0.05
"""Of the answers that end in so long one is compared with its prediction: to predict costs a part of a millisecond
beside the engine's loop, and the p95 of a window is no worse for it."""
PRIOR_TAIL = 1.3
"""p95 of actual over predicted latency before enough answers were seen."""


class LatencyTails:
    """p95 of actual over predicted latency by mode, for what has a deadline: the rest waits for it by design."""

    def __init__(self) -> None:
        self._seen: dict[str, Quantile] = {}
        self._next_s = -math.inf

    def wants(self, now_s: float) -> bool:
        """Whether an answer that ended now is to be observed; if so, the next one is `TAIL_EVERY_S` later."""
        if now_s < self._next_s:
            return False
        self._next_s = now_s + TAIL_EVERY_S
        return True

    def observe(self, mode: str, ratio: float) -> None:
        """Counts an answer that was `ratio` times its predicted latency."""
        self._seen.setdefault(mode, Quantile(PRIOR_TAIL)).observe(ratio)

    def values(self) -> dict[str, float]:
        """By mode; a few answers say nothing about a p95, so that the prior holds until there are enough."""
        return {mode: min(seen.value, MOST_TAIL) for mode, seen in self._seen.items() if seen.sure}
