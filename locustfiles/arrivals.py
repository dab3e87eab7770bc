"""When requests arrive: pure generators of arrival times, in seconds from the start of a run.

All of them are open loop: nothing here knows when, or whether, an answer came.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import takewhile
from random import Random


def poisson(rate: float, duration_s: float, rng: Random) -> Iterator[float]:
    """Independent arrivals at `rate` per second. Raises ValueError for a rate or duration that is not above 0."""
    above_zero(rate=rate, duration_s=duration_s)
    return before(duration_s, (unit / rate for unit in unit_poisson(rng)))


def ramp(first_rate: float, last_rate: float, duration_s: float, rng: Random) -> Iterator[float]:
    """Poisson arrivals whose rate changes evenly from `first_rate` to `last_rate` over the run.

    By change of time: the expected number until t is N(t) = a t + (b - a) t^2 / 2D, and a unit Poisson process read
    through the inverse of N has that rate. Raises ValueError for negative rates, or two rates of 0.
    """
    above_zero(duration_s=duration_s, rates=first_rate + last_rate)
    if min(first_rate, last_rate) < 0:
        raise ValueError(f"the rates are {first_rate} and {last_rate}; allowed: at least 0")
    slope = (last_rate - first_rate) / duration_s

    def when(expected: float) -> float:
        """The t with N(t) = `expected`; infinite when a falling ramp never gets there."""
        under = first_rate * first_rate + 2 * slope * expected
        if under < 0:
            return math.inf
        # The form without a difference of nearly equal numbers; slope 0 needs no case of its own.
        return 2 * expected / (first_rate + math.sqrt(under))

    return before(duration_s, (when(unit) for unit in unit_poisson(rng)))


def burst(
    rate: float, factor: float, begin_s: float, length_s: float, duration_s: float, rng: Random
) -> Iterator[float]:
    """Poisson arrivals at `rate`, and `factor` times as many from `begin_s` for `length_s` seconds.

    Raises ValueError for a rate, factor, length or duration that is not above 0, and for a negative begin.
    """
    above_zero(rate=rate, factor=factor, length_s=length_s, duration_s=duration_s)
    if begin_s < 0:
        raise ValueError(f"begin_s is {begin_s}; allowed: at least 0")
    until_begin = rate * begin_s
    until_end = until_begin + rate * factor * length_s

    def when(expected: float) -> float:
        if expected <= until_begin:
            return expected / rate
        if expected <= until_end:
            return begin_s + (expected - until_begin) / (rate * factor)
        return begin_s + length_s + (expected - until_end) / rate

    return before(duration_s, (when(unit) for unit in unit_poisson(rng)))


def gamma(rate: float, cv: float, duration_s: float, rng: Random) -> Iterator[float]:
    """Arrivals with Gamma distributed gaps of mean 1/rate and coefficient of variation `cv`.

    `cv` 1 is Poisson, above 1 comes in clumps, below 1 is more even. Raises ValueError for what is not above 0.
    """
    above_zero(rate=rate, cv=cv, duration_s=duration_s)
    shape = 1 / (cv * cv)
    scale = 1 / (rate * shape)

    def times() -> Iterator[float]:
        now = 0.0
        while True:
            now += rng.gammavariate(shape, scale)
            yield now

    return before(duration_s, times())


def unit_poisson(rng: Random) -> Iterator[float]:
    """A Poisson process of rate 1, without end."""
    now = 0.0
    while True:
        now += rng.expovariate(1.0)
        yield now


def before(duration_s: float, times: Iterator[float]) -> Iterator[float]:
    """The times up to the end of the run."""
    return takewhile(lambda at_s: at_s < duration_s, times)


def above_zero(**values: float) -> None:
    """Raises ValueError naming the first value that is not a finite number above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{name} is {value}; allowed: a number above 0")
