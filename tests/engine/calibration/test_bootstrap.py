"""Intervals and fits: known answers, and oracles that share no code with them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.calibration.bootstrap import (
    isotonic,
    isotonic_intervals,
    linear_fit,
    mean_interval,
    rate_interval,
    ratio_interval,
    resamples,
)


def test_an_interval_of_a_rate_is_as_wide_as_theory_says() -> None:
    values = np.arange(1000) < 800
    interval = rate_interval(values.astype(float))
    # Normal approximation of a binomial: 0.8 -+ 1.96 * sqrt(0.8 * 0.2 / 1000).
    assert (interval.low, interval.value, interval.high) == pytest.approx((0.7752, 0.8, 0.8248), abs=0.003)


def test_a_paired_difference_is_narrower_than_two_intervals() -> None:
    ar = (np.arange(400) % 4 != 0).astype(float)
    rung = ar.copy()
    rung[1] = 0.0
    difference = mean_interval(rung - ar)
    assert difference.value == pytest.approx(-1 / 400)
    assert difference.high <= 0.0
    assert difference.high - difference.low < 0.01
    assert mean_interval(rung).high - mean_interval(rung).low > 0.05


@pytest.mark.parametrize(("prompts", "bound"), [(10, 0.6915), (30, 0.8843), (1000, 0.99632)])
def test_all_right_is_not_certain(prompts: int, bound: float) -> None:
    # Clopper and Pearson's 95% lower bound for n of n, as tables have it.
    interval = rate_interval(np.ones(prompts))
    assert (interval.value, interval.high) == (1.0, 1.0)
    assert interval.low == pytest.approx(bound, abs=5e-5)
    assert rate_interval(np.zeros(prompts)).high == pytest.approx(1 - bound, abs=5e-5)


def test_resamples_draw_as_many_prompts_as_there_are() -> None:
    counts = resamples(17)
    assert (counts.sum(axis=1) == 17).all()
    # The chance that a prompt is not drawn is (1 - 1/17) ** 17 = 0.357.
    assert (counts == 0).mean() == pytest.approx(0.357, abs=0.01)
    with pytest.raises(ValueError, match="prompts is 0"):
        resamples(0)


def test_a_ratio_weighs_by_its_denominator() -> None:
    interval = ratio_interval(np.array([-1.0, -30.0]), np.array([10.0, 10.0]))
    assert interval.value == pytest.approx(-1.55)
    assert interval.low == pytest.approx(-3.0)
    assert interval.high == pytest.approx(-0.1)


def pool_adjacent_violators(values: list[float]) -> list[float]:
    """The textbook algorithm (Barlow et al., 1972), which the max-min formula must agree with."""
    pools: list[tuple[float, int]] = []
    for value in values:
        pools.append((value, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, m), (right, n) = pools[-2:]
            pools[-2:] = [((left * m + right * n) / (m + n), m + n)]
    return [value for value, count in pools for _ in range(count)]


@settings(max_examples=100)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=6))
def test_isotonic_is_pool_adjacent_violators(values: list[float]) -> None:
    assert isotonic(np.array(values)) == pytest.approx(pool_adjacent_violators(values))


def test_isotonic_fits_every_row_by_itself() -> None:
    assert isotonic(np.array([[1.0, 3, 2, 4], [3, 0, 0, 1]])) == pytest.approx(
        np.array([[1, 2.5, 2.5, 4], [1, 1, 1, 1]])
    )


def test_bounds_do_not_fall_with_more_steps_even_where_all_is_right() -> None:
    almost = np.ones(1000)
    almost[0] = 0.0
    low, high = isotonic_intervals(np.stack([almost, np.ones(1000)]))
    assert low.value == pytest.approx(0.999)
    assert high.value == 1.0
    assert low.low <= high.low


def test_linear_fit_of_a_line_and_of_a_curve() -> None:
    assert linear_fit([1, 2, 4], [5, 7, 11]) == pytest.approx((3, 2, 1))
    assert linear_fit([1, 2, 4, 8], [1, 4, 16, 64])[2] < 0.98
