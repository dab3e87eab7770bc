"""Replicas over time, how busy the engines were, and which process had no CPU left first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from locustfiles.cluster_metrics import ClusterSample
from locustfiles.processes import LOAD_GENERATOR, role_of

WINDOW_S = 5.0


@dataclass(frozen=True, slots=True)
class Use:
    """CPU of one process, or the busy time of one replica's loop, while the load ran.

    Attributes:
        seconds: in all. mean: per second. peak: per second in the busiest 5 s; 1 is a whole core.
    """

    name: str
    seconds: float
    mean: float
    peak: float


@dataclass(frozen=True, slots=True)
class ClusterUse:
    """The cluster while the load ran.

    Attributes:
        most_replicas, mean_replicas: by the readings of `/metrics`. readings, failed_readings: how many there were.
        most_queue_s: most predicted seconds of work, all replicas.
        engines: busy time of each replica's loop. processes: CPU of each process, most used first.
        busiest: role of the cluster's process with the highest CPU peak; None where none was seen.
    """

    readings: int
    failed_readings: int
    most_replicas: int
    mean_replicas: float
    most_queue_s: float
    engines: list[Use] = field(default_factory=list)
    processes: list[Use] = field(default_factory=list)
    busiest: str | None = None


def cluster_use(samples: Sequence[ClusterSample], until_s: float) -> ClusterUse:
    """What the readings up to `until_s` say."""
    during = [sample for sample in samples if sample.at_s <= until_s]
    good = [sample for sample in during if sample.error is None]
    processes = uses(during, lambda sample: sample.cpu_s)
    cluster = [use for use in processes if use.name != LOAD_GENERATOR]
    return ClusterUse(
        readings=len(during),
        failed_readings=len(during) - len(good),
        most_replicas=max((sample.replicas for sample in good), default=0),
        mean_replicas=sum(sample.replicas for sample in good) / len(good) if good else 0.0,
        most_queue_s=max((sum(sample.queue_s.values()) for sample in good), default=0.0),
        engines=uses(good, lambda sample: sample.busy_s),
        processes=processes,
        busiest=role_of(max(cluster, key=lambda use: use.peak).name) if cluster else None,
    )


def uses(samples: Sequence[ClusterSample], of: Callable[[ClusterSample], dict[str, float]]) -> list[Use]:
    """What each counter grew by, most first."""
    found = []
    for name in dict.fromkeys(name for sample in samples for name in of(sample)):
        points = [(sample.at_s, of(sample)[name]) for sample in samples if name in of(sample)]
        seconds = points[-1][1] - points[0][1]
        span_s = points[-1][0] - points[0][0]
        if span_s > 0:
            found.append(Use(name, seconds, seconds / span_s, peak(points)))
    return sorted(found, key=lambda use: -use.seconds)


def peak(points: Sequence[tuple[float, float]]) -> float:
    """The steepest growth per second over a window of 5 s, or over all of it where that is shorter."""
    best = 0.0
    last = 0
    for at_s, value in points:
        while last < len(points) - 1 and points[last][0] - at_s < WINDOW_S:
            last += 1
        span_s = points[last][0] - at_s
        whole = at_s == points[0][0]
        if span_s > 0 and (span_s >= WINDOW_S or whole):
            best = max(best, (points[last][1] - value) / span_s)
    return best
