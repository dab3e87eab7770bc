"""Replicas for seconds of work: bounds, fast up, slow down, no flapping, and what is told about it."""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.autoscaling import QueueSecondsPolicy, need, replicas_wanted, work_by_tier

needs = st.floats(0, 1e3)


@given(needs, needs, st.integers(1, 50), st.integers(1, 10), st.integers(0, 40))
def test_bounds_always_hold(latest: float, mean: float, current: int, low: int, more: int) -> None:
    assert low <= replicas_wanted(latest, mean, current, low, low + more) <= low + more


@given(needs, needs, st.integers(1, 50))
def test_more_work_never_means_fewer_replicas(latest: float, more: float, current: int) -> None:
    few = replicas_wanted(latest, latest, current, 1, 10_000)
    many = replicas_wanted(latest + more, latest + more, current, 1, 10_000)
    assert many >= few


@given(needs, st.integers(1, 50))
def test_a_burst_is_met_at_once(latest: float, current: int) -> None:
    wanted = replicas_wanted(latest, 0.0, current, 1, 10_000)
    assert wanted >= latest - 1e-6, "all that it needs in one step, whatever the mean still says"


@given(needs, st.integers(1, 50))
def test_the_same_work_settles(latest: float, current: int) -> None:
    """A fixed point is reached and kept: scaling down never asks for scaling up again."""
    for _ in range(2000):
        wanted = replicas_wanted(latest, latest, current, 1, 10_000)
        if wanted == current:
            break
        current = wanted
    assert replicas_wanted(latest, latest, current, 1, 10_000) == current


@given(st.floats(0, 30), st.floats(0, 0.25), st.lists(st.floats(-1, 1), min_size=80, max_size=80))
def test_noise_does_not_flap(level: float, share: float, noise: list[float]) -> None:
    """Work that wanders by a quarter around a level: after a first approach there is no up after a down."""
    current, window = 1, deque([level], maxlen=4)
    moves = []
    for wobble in [*noise, *noise]:
        latest = max(0.0, level * (1 + share * wobble))
        window.append(latest)
        wanted = replicas_wanted(latest, sum(window) / len(window), current, 1, 1000)
        if wanted != current:
            moves.append(wanted - current)
        current = wanted
    downs = [place for place, move in enumerate(moves) if move < 0]
    assert not any(move > 0 for move in moves[downs[0] :]) if downs else True
    assert current >= level * (1 - share) - 1e-6


def test_known_values() -> None:
    assert replicas_wanted(2.8, 1, 1, 1, 8) == 3
    assert replicas_wanted(0, 0, 3, 1, 8) == 2
    assert replicas_wanted(0, 1.8, 3, 1, 8) == 3, "the mean still remembers the burst"
    assert replicas_wanted(1.2, 1.2, 3, 1, 8) == 3, "two would be more than half full"


def test_a_tight_tier_needs_more_replicas_for_the_same_work() -> None:
    targets = {"realtime": 0.5, "batch": 60.0}
    assert need({"realtime": 3.0}, targets, 2.0) == 6.0
    assert need({"batch": 3.0}, targets, 2.0) == 0.05
    assert need({"realtime": 1.0, "batch": 60.0, "": 4.0}, targets, 2.0) == 5.0


def point(value: float) -> SimpleNamespace:
    return SimpleNamespace(value=value)


def test_work_of_no_known_tier_is_what_the_parts_leave() -> None:
    raw = {
        "queue_s": {"a": [point(2), point(6)], "b": [point(4)]},
        "queue_s_realtime": {"a": [point(1), point(5)], "b": []},
    }
    latest, mean = work_by_tier(raw, {"realtime": 0.5, "batch": 60})
    assert latest == {"realtime": 5, "": 5}
    assert mean == {"realtime": 3, "": 5}
    assert work_by_tier({}, {"realtime": 0.5}) == ({}, {})


def context(**metrics: dict[str, list[SimpleNamespace]]) -> Any:
    return SimpleNamespace(
        app_name="stepdial",
        raw_metrics=metrics,
        current_num_replicas=2,
        target_num_replicas=2,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Lines of the log that Serve writes."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    log = logging.getLogger("ray.serve")
    monkeypatch.setattr(log, "level", logging.INFO)
    log.addHandler(handler)
    yield lines
    log.removeHandler(handler)


def test_the_policy_reads_the_latest_report_of_every_replica(told: list[str]) -> None:
    policy = QueueSecondsPolicy(target_s=2.5)
    assert policy(context(queue_s={"a": [point(0), point(6)], "b": [point(0), point(3)]})) == (4, {})
    policy(context(queue_s={"a": [point(6)], "b": [point(3)]}))
    assert len(told) == 1, "only a new decision is a log line"
    said = json.loads(told[0].partition(": ")[2])
    assert said["wanted_replicas"] == 4
    assert said["target_replicas"] == 2
    assert said["work_s"] == {"": 9}
    assert said["need_replicas"] == 3.6
    assert policy(context()) == (2, {}), "no report is no reason to change"


def test_targets_of_tiers_reach_the_policy() -> None:
    policy = QueueSecondsPolicy(target_s=2.5, targets_s={"realtime": 0.5})
    metrics = {"queue_s": {"a": [point(2)]}, "queue_s_realtime": {"a": [point(1.5)]}}
    assert policy(context(**metrics)) == (4, {})
