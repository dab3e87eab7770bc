"""Replicas for seconds of work: bounds, fast up, slow down, no flapping."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from deployments.autoscaling import QueueSecondsPolicy, replicas_wanted

work = st.floats(0, 1e4)


@given(work, work, st.floats(0.1, 100), st.integers(1, 50), st.integers(1, 10), st.integers(0, 40))
def test_bounds_always_hold(latest: float, mean: float, target: float, current: int, low: int, more: int) -> None:
    assert low <= replicas_wanted(latest, mean, target, current, low, low + more) <= low + more


@given(work, work, st.floats(0.1, 100), st.integers(1, 50))
def test_more_work_never_means_fewer_replicas(latest: float, more: float, target: float, current: int) -> None:
    few = replicas_wanted(latest, latest, target, current, 1, 1000)
    many = replicas_wanted(latest + more, latest + more, target, current, 1, 1000)
    assert many >= few


@given(work, st.floats(0.1, 100), st.integers(1, 50))
def test_the_same_work_settles(latest: float, target: float, current: int) -> None:
    """A fixed point is reached and kept: scaling down never asks for scaling up again."""
    for _ in range(2000):
        wanted = replicas_wanted(latest, latest, target, current, 1, 1000)
        if wanted == current:
            break
        current = wanted
    assert replicas_wanted(latest, latest, target, current, 1, 1000) == current


def test_known_values() -> None:
    assert replicas_wanted(14, 5, 5, 1, 1, 8) == 3
    assert replicas_wanted(0, 0, 5, 3, 1, 8) == 2
    assert replicas_wanted(0, 9, 5, 3, 1, 8) == 3, "the mean still remembers the burst"
    assert replicas_wanted(6, 6, 5, 3, 1, 8) == 3, "two would be more than half full"


def test_the_policy_reads_the_latest_report_of_every_replica() -> None:
    def point(value: float) -> SimpleNamespace:
        return SimpleNamespace(value=value)

    context = SimpleNamespace(
        raw_metrics={"queue_s": {"a": [point(0), point(6)], "b": [point(0), point(3)]}},
        target_num_replicas=2,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )
    policy = QueueSecondsPolicy(target_s=2.5)
    assert policy(context) == (4, {})  # type: ignore[arg-type]
    context.raw_metrics = {}
    assert policy(context) == (2, {}), "no report is no reason to change"  # type: ignore[arg-type]
