"""What was seen of finished requests: output lengths, latencies against their predictions, the cost of the HTTP path.

Prompts do not tell how long their answers get, so a plan bounds the length by `max_tokens` and by what answers to
prompts of about the same length had (performance notes: steps and lengths cannot be predicted at admission).
"""

from __future__ import annotations

import math
from collections import deque


def quantile(values: list[float], q: float) -> float:
    """The smallest value with at least a share `q` of `values` at or below it."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(q * len(ordered)) - 1)]


class Quantile:
    """A quantile of the last `window` values; until `enough` were seen, not below `prior`."""

    def __init__(self, prior: float, q: float = 0.95, window: int = 200, enough: int = 20) -> None:
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


class OutputLengths:
    """p95 of output tokens by prompt length (powers of two), for answers that ended by themselves."""

    def __init__(self, prior_tokens: int, enough: int = 20) -> None:
        self.prior_tokens = prior_tokens
        self.enough = enough
        self._buckets: dict[int, Quantile] = {}

    def observe(self, prompt_tokens: int, output_tokens: int) -> None:
        bucket = prompt_tokens.bit_length()
        if bucket not in self._buckets:
            self._buckets[bucket] = Quantile(self.prior_tokens, enough=self.enough)
        self._buckets[bucket].observe(output_tokens)

    def bound(self, prompt_tokens: int, max_tokens: int) -> int:
        """Output tokens that a plan should reckon with."""
        seen = self._buckets.get(prompt_tokens.bit_length())
        return max(1, min(max_tokens, self.prior_tokens if seen is None else math.ceil(seen.value)))
