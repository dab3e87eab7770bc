"""How many replicas: a pure decision on seconds of queued work, and the policy object that Ray Serve calls.

Runs inside Serve's controller, in its control loop: no I/O, no waiting.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.config import AutoscalingContext

log = logging.getLogger("ray.serve")
METRIC = "queue_s"
LEAVE_SHARE = 0.5
"""A replica leaves only if the others would then have at most this share of the target each: no flapping."""


def replicas_wanted(latest_s: float, mean_s: float, target_s: float, current: int, low: int, high: int) -> int:
    """Replicas for `latest_s` seconds of work in all.

    Up by the latest value, so that a burst is seen at once; down one at a time, by the mean over the look-back, and
    only when the rest would be at most half full.

    Args:
        mean_s: mean of the total over the look-back window. target_s: seconds of work per replica to aim at.
        current: replicas that are wanted now. low, high: bounds.
    """
    wanted = math.ceil(latest_s / target_s - 1e-9)
    if wanted < current:
        fits = current > 1 and max(mean_s, latest_s) <= LEAVE_SHARE * target_s * (current - 1)
        wanted = current - 1 if fits else current
    return min(max(wanted, low, 1), high)


class QueueSecondsPolicy:
    """Ray Serve's custom policy: `queue_s` of every replica (`Replica.record_autoscaling_stats`)."""

    def __init__(self, target_s: float) -> None:
        self.target_s = target_s
        self._last: int | None = None

    def __call__(self, ctx: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        series = {str(replica): [point.value for point in points] for replica, points in _series(ctx).items() if points}
        current = ctx.target_num_replicas
        if not series:
            # Nothing was reported yet: a replica that starts must not be taken for an idle one.
            return current, {}
        latest = sum(values[-1] for values in series.values())
        mean = sum(sum(values) / len(values) for values in series.values())
        low, high = ctx.capacity_adjusted_min_replicas, ctx.capacity_adjusted_max_replicas
        wanted = replicas_wanted(latest, mean, self.target_s, current, low, high)
        if wanted != self._last:
            log.info(
                "stepdial autoscaling: %d -> %d replicas; work %.2f s now, %.2f s mean, target %.2f s per replica",
                current, wanted, latest, mean, self.target_s,
            )  # fmt: skip
            self._last = wanted
        return wanted, {}


def _series(ctx: AutoscalingContext) -> Mapping[Any, Sequence[Any]]:
    series: Mapping[Any, Sequence[Any]] = (ctx.raw_metrics or {}).get(METRIC, {})
    return series
