"""Arrival times against what is known of their distributions. Bounds are 4 standard deviations; seeds are fixed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from math import sqrt
from random import Random
from statistics import fmean, pstdev

import pytest

from locustfiles.arrivals import burst, gamma, poisson, ramp


def gaps(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in pairwise([0.0, *times])]


def between(times: Sequence[float], low: float, high: float) -> int:
    return sum(low <= at_s < high for at_s in times)


def expect(count: int, mean: float) -> None:
    """A Poisson count with this mean."""
    assert abs(count - mean) < 4 * sqrt(mean), f"{count} arrivals, expected {mean:.0f}"


def test_poisson_has_the_rate_and_memoryless_gaps() -> None:
    times = list(poisson(5.0, 2000.0, Random(1)))
    expect(len(times), 10_000)
    waits = gaps(times)
    assert pstdev(waits) / fmean(waits) == pytest.approx(1.0, abs=0.05)
    # Memoryless: e^-1 of the gaps are longer than the mean gap.
    assert between(waits, 0.2, 1e9) / len(waits) == pytest.approx(0.368, abs=0.02)


def test_a_ramp_puts_as_many_arrivals_into_each_part_as_its_rate_says() -> None:
    times = list(ramp(2.0, 18.0, 1000.0, Random(2)))
    # The integral of 2 + 16 t/1000 over each quarter.
    for begin, mean in ((0, 1000), (250, 2000), (500, 3000), (750, 4000)):
        expect(between(times, begin, begin + 250), mean)


def test_a_ramp_may_fall_to_nothing() -> None:
    times = list(ramp(20.0, 0.0, 200.0, Random(3)))
    expect(between(times, 0, 100), 1500)
    expect(between(times, 100, 200), 500)


def test_a_ramp_without_slope_is_poisson() -> None:
    times = list(ramp(4.0, 4.0, 500.0, Random(4)))
    expect(between(times, 0, 250), 1000)
    expect(between(times, 250, 500), 1000)


def test_a_burst_multiplies_the_rate_in_its_window_only() -> None:
    times = list(burst(5.0, 6.0, 100.0, 50.0, 300.0, Random(5)))
    expect(between(times, 0, 100), 500)
    expect(between(times, 100, 150), 1500)
    expect(between(times, 150, 300), 750)


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_gamma_has_the_rate_and_the_variation(cv: float) -> None:
    waits = gaps(list(gamma(10.0, cv, 4000.0, Random(6))))
    assert fmean(waits) == pytest.approx(0.1, rel=0.06)
    assert pstdev(waits) / fmean(waits) == pytest.approx(cv, rel=0.08)


ALL: list[Callable[[Random], Iterator[float]]] = [
    lambda rng: poisson(3.0, 50.0, rng),
    lambda rng: ramp(1.0, 5.0, 50.0, rng),
    lambda rng: burst(2.0, 4.0, 10.0, 10.0, 50.0, rng),
    lambda rng: gamma(3.0, 2.0, 50.0, rng),
]


@pytest.mark.parametrize("process", ALL)
def test_times_ascend_within_the_run_and_follow_the_seed(process: Callable[[Random], Iterator[float]]) -> None:
    times = list(process(Random(7)))
    assert times
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 50.0
    assert times == list(process(Random(7)))
    assert times != list(process(Random(8)))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: poisson(0.0, 10.0, Random(1)), "rate is 0.0"),
        (lambda: poisson(float("nan"), 10.0, Random(1)), "rate is nan"),
        (lambda: poisson(1.0, -1.0, Random(1)), "duration_s is -1.0"),
        (lambda: ramp(-1.0, 5.0, 10.0, Random(1)), "rates are -1.0 and 5.0"),
        (lambda: ramp(0.0, 0.0, 10.0, Random(1)), "rates is 0"),
        (lambda: burst(1.0, 2.0, -3.0, 1.0, 10.0, Random(1)), "begin_s is -3.0"),
        (lambda: gamma(1.0, 0.0, 10.0, Random(1)), "cv is 0.0"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(make: Callable[[], Iterator[float]], name: str) -> None:
    with pytest.raises(ValueError, match=name):
        make()
