"""How many replicas: a pure decision on seconds of queued work, and the policy object that Ray Serve calls.

The policy runs inside Serve's controller, in its control loop: it neither waits nor does I/O there. What it decided,
with its inputs, is a log line and a record in the cluster's key-value store, from which the routers' `/metrics` takes
it (nobody can scrape the controller). Serve pickles this module by value, so it imports nothing of ours.
"""

from __future__ import annotations

import json
import logging
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")
METRIC = "queue_s"
"""What replicas report: seconds of work in all, and `queue_s_TIER` for each tier's part of it."""
LEAVE_SHARE = 0.5
"""A replica leaves only if the others would then have at most this share of the target each: no flapping."""
STORE_NAMESPACE = "stepdial"
PUBLISH_EVERY_S = 1.0


def need(work_s: Mapping[str, float], targets_s: Mapping[str, float], target_s: float) -> float:
    """Replicas (a fraction) that work needs, so that no tier's queue is longer than its target on each of them.

    Args:
        work_s: seconds of work by tier, over all replicas; "" is work of no known tier. targets_s: seconds per replica
            to aim at, by tier. target_s: for tiers that have none.
    """
    return sum(seconds / targets_s.get(tier, target_s) for tier, seconds in work_s.items())


def replicas_wanted(latest: float, mean: float, current: int, low: int, high: int) -> int:
    """Replicas for a need of `latest` (see `need`).

    Up by the latest value and at once to all that it needs, so that a burst is met; down one at a time, by the mean
    over the look-back, and only when the rest would be at most half full.

    Args:
        mean: mean need over the look-back window. current: replicas that are wanted now. low, high: bounds.
    """
    wanted = math.ceil(latest - 1e-9)
    if wanted < current:
        fits = current > 1 and max(mean, latest) <= LEAVE_SHARE * (current - 1)
        wanted = current - 1 if fits else current
    return min(max(wanted, low, 1), high)


class QueueSecondsPolicy:
    """Ray Serve's custom policy: `queue_s` of every replica (`Replica.record_autoscaling_stats`)."""

    def __init__(self, target_s: float, targets_s: dict[str, float] | None = None) -> None:
        self.target_s = target_s
        self.targets_s = targets_s or {}
        self._wanted: int | None = None
        self._published_at_s = -math.inf
        self._publisher: threading.Thread | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        current = ctx.target_num_replicas
        latest_s, mean_s = work_by_tier(ctx.raw_metrics or {}, self.targets_s)
        if not latest_s:
            # Nothing was reported yet: a replica that starts must not be taken for an idle one.
            return current, {}
        latest, mean = (need(work, self.targets_s, self.target_s) for work in (latest_s, mean_s))
        low, high = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
        wanted = replicas_wanted(latest, mean, current, low, high)
        self._tell(
            ctx.app_name or "",
            {
                "wanted_replicas": wanted,
                "target_replicas": current,
                "running_replicas": ctx.current_num_replicas,
                "need_replicas": latest,
                "mean_need_replicas": mean,
                "min_replicas": low,
                "max_replicas": high,
                "work_s": latest_s,
                "target_queue_s": {tier: self.targets_s.get(tier, self.target_s) for tier in latest_s},
            },
        )
        return wanted, {}

    def _tell(self, application: str, decision: dict[str, Any]) -> None:
        """Logs a new decision, and leaves it in the store from a thread of its own."""
        changed = decision["wanted_replicas"] != self._wanted
        if changed:
            log.info("stepdial autoscaling: %s", json.dumps(decision))
            self._wanted = decision["wanted_replicas"]
        now = time.monotonic()
        busy = self._publisher is not None and self._publisher.is_alive()
        if busy or not (changed or now - self._published_at_s >= PUBLISH_EVERY_S):
            return
        self._published_at_s = now
        record = json.dumps({**decision, "decided_at_s": time.time()})
        self._publisher = threading.Thread(target=publish, args=(application, record), daemon=True)
        self._publisher.start()


def work_by_tier(
    raw_metrics: Mapping[str, Mapping[Any, Sequence[Any]]], tiers: Mapping[str, float]
) -> tuple[dict[str, float], dict[str, float]]:
    """Seconds of work by tier over all replicas, latest and mean over the look-back; both empty without any report.

    What a replica reports in all beyond its tiers' parts is work of no known tier, "".
    """
    total = _sums(raw_metrics.get(METRIC, {}))
    if total is None:
        return {}, {}
    latest: dict[str, float] = {}
    mean: dict[str, float] = {}
    for tier in tiers:
        part = _sums(raw_metrics.get(f"{METRIC}_{tier}", {}))
        if part is not None:
            latest[tier], mean[tier] = part
    latest[""] = max(0.0, total[0] - sum(latest.values()))
    mean[""] = max(0.0, total[1] - sum(mean.values()))
    return latest, mean


def _sums(series: Mapping[Any, Sequence[Any]]) -> tuple[float, float] | None:
    """(latest, mean) summed over the replicas that have reported."""
    values = [[point.value for point in points] for points in series.values() if points]
    if not values:
        return None
    return sum(points[-1] for points in values), sum(sum(points) / len(points) for points in values)


def publish(application: str, record: str) -> None:
    """Leaves an application's decision (JSON) in the cluster's store.

    Not knowing it harms nobody, so a failure is only logged.
    """
    from ray.experimental.internal_kv import _internal_kv_initialized, _internal_kv_put

    if not _internal_kv_initialized():
        return
    try:
        _internal_kv_put(_key(application), record, overwrite=True, namespace=STORE_NAMESPACE)
    except Exception as error:
        log.warning("the autoscaling decision could not be published: %s", error)


def _key(application: str) -> str:
    return f"autoscaling/{application}"


def read_decision(application: str) -> dict[str, Any] | None:
    """The last decision about an application of this cluster, None where there was none; blocks for one call."""
    from ray.experimental.internal_kv import _internal_kv_get, _internal_kv_initialized

    record = _internal_kv_get(_key(application), namespace=STORE_NAMESPACE) if _internal_kv_initialized() else None
    decision: dict[str, Any] | None = None if record is None else json.loads(record)
    return decision
