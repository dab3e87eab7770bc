"""The router's `/metrics`, read once a second under load: how many replicas there are and what their engines do."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

QUEUE, BUSY, FORWARD, RUNNING, WAITING = (
    "stepdial_engine_queue_seconds",
    "stepdial_engine_busy_seconds_total",
    "stepdial_engine_forward_seconds_total",
    "stepdial_engine_sequences_running",
    "stepdial_engine_sequences_waiting",
)
TIMEOUT_S = 5.0


@dataclass(slots=True)
class ClusterSample:
    """The cluster at one moment.

    Attributes:
        at_s: seconds after the start of the run.
        queue_s: predicted seconds of work, by replica; its keys are the replicas that answered.
        busy_s, forward_s: seconds since its start that a replica's loop was busy, and inside forwards.
        running, waiting: sequences with and without K/V, all replicas.
        cpu_s: CPU seconds so far, by process of the cluster and the load generator.
        error: why `/metrics` could not be read.
    """

    at_s: float
    queue_s: dict[str, float] = field(default_factory=dict)
    busy_s: dict[str, float] = field(default_factory=dict)
    forward_s: dict[str, float] = field(default_factory=dict)
    running: float = 0.0
    waiting: float = 0.0
    cpu_s: dict[str, float] = field(default_factory=dict)
    error: str | None = None

    @property
    def replicas(self) -> int:
        return len(self.queue_s)


def sample_of(text: str, at_s: float, cpu_s: Mapping[str, float]) -> ClusterSample:
    """What a Prometheus text says. Raises ValueError for what is no such text."""
    sample = ClusterSample(at_s, cpu_s=dict(cpu_s))
    by_replica = {QUEUE: sample.queue_s, BUSY: sample.busy_s, FORWARD: sample.forward_s}
    for family in text_string_to_metric_families(text):
        for each in family.samples:
            replica = each.labels.get("replica")
            if replica is None:
                continue
            if each.name in by_replica:
                by_replica[each.name][replica] = each.value
            elif each.name == RUNNING:
                sample.running += each.value
            elif each.name == WAITING:
                sample.waiting += each.value
    return sample


def read_sample(host: str, at_s: float, cpu_s: Mapping[str, float]) -> ClusterSample:
    """One reading; a failure is a sample with its error, so that the report can count it."""
    try:
        with urllib.request.urlopen(f"{host}/metrics", timeout=TIMEOUT_S) as answer:
            return sample_of(answer.read().decode(), at_s, cpu_s)
    except (urllib.error.URLError, OSError, ValueError) as error:
        return ClusterSample(at_s, cpu_s=dict(cpu_s), error=str(error))
