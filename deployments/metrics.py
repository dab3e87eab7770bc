"""Prometheus metrics of engine and router, by `prometheus-client`; names begin with `stepdial_`.

Serve exports no replica's registry by itself, so the router's `/metrics` asks every replica for its text and merges it,
labelled by replica.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from engine.plan import Decoding
from engine.request import equivalent_to_ar

if TYPE_CHECKING:
    from deployments.tiers import Tier
    from engine.plan import Rung
    from engine.stats import EngineStats

# The time of a series' creation is a series of its own, which the text format cannot mark as such.
disable_created_metrics()  # type: ignore[no-untyped-call]

LATENCY_BUCKETS_S = (0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.5, 5.0, 10.0, 20.0, 60.0)
RATIO_BUCKETS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0, 1.1, 1.25, 1.5, 2.0, 4.0)
AUTOSCALING_TIMEOUT_S = 2.0
"""How long `/metrics` waits for the store that holds the autoscaler's decision."""
TOKEN_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 4096)


class EngineMetrics:
    """One replica's registry: the engine's own counters, and refusals at admission."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_EngineCollector(stats))
        self.not_in_time = Counter(
            "stepdial_engine_not_in_time",
            "Requests refused at admission by the replica itself.",
            registry=self.registry,
        )

    def text(self) -> str:
        return generate_latest(self.registry).decode()


class _EngineCollector(Collector):
    """Reads `EngineStats` when asked, so that the engine's loop never touches a metric object."""

    def __init__(self, stats: Callable[[], EngineStats]) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        cost = stats.cost_model["cost"]
        gauges: Mapping[str, tuple[str, float]] = {
            "queue_seconds": ("Predicted seconds of forwards waiting plus running.", stats.queue_s),
            "sequences_waiting": ("Sequences without K/V.", stats.waiting),
            "sequences_running": ("Sequences with K/V.", stats.running),
            "kv_pages_in_use": ("K/V pages that sequences hold.", stats.pages_in_use),
            "kv_pages": ("K/V pages in all.", stats.pages_total),
            "forward_base_seconds": ("Fitted cost of a forward: constant part.", cost["base_s"]),
            "forward_seconds_per_sequence": ("Fitted cost of a sequence in a forward.", cost["per_sequence_s"]),
            "forward_seconds_per_token": ("Fitted cost of a query token.", cost["per_token_s"]),
            "forward_seconds_per_context": ("Fitted cost of a key position.", cost["per_context_s"]),
        }
        counters: Mapping[str, tuple[str, float]] = {
            "forwards": ("Forwards.", stats.forwards),
            "forward_seconds": ("Seconds until what forwards chose was known.", stats.forward_s),
            "busy_seconds": ("Seconds inside steps of the loop, forwards included.", stats.busy_s),
            "denoise_steps": ("Denoise forwards, by sequence.", stats.denoise_steps),
            "draft_steps": ("Draft forwards, by sequence.", stats.draft_steps),
            "prompt_tokens": ("Prompt tokens of admitted sequences.", stats.prompt_tokens),
            "prefix_hit_tokens": ("Prompt tokens read from shared pages.", stats.prefix_hit_tokens),
            "preemptions": ("Sequences whose K/V was dropped and computed again.", stats.preemptions),
            "rung_changes": ("Changes of rung in the middle of an answer.", stats.rung_changes),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(f"stepdial_engine_{name}", text, value=value)
        for name, (text, value) in counters.items():
            yield CounterMetricFamily(f"stepdial_engine_{name}", text, value=value)
        yield _labelled("slots", "Query tokens by kind of work.", "kind", stats.slots)
        yield _labelled("generated_tokens", "Settled output tokens by mode.", "decoding", stats.generated_tokens)
        yield _labelled("finished", "Sequences by how they ended.", "reason", stats.finished)


def _labelled(name: str, text: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    family = CounterMetricFamily(f"stepdial_engine_{name}", text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class AutoscalingMetrics(Collector):
    """The autoscaler's last decision with its inputs, as its policy left it (`deployments/autoscaling.py`)."""

    def __init__(self) -> None:
        self.decision: dict[str, Any] | None = None

    def collect(self) -> Iterator[Metric]:
        decision = self.decision or {}
        gauges = {
            "wanted_replicas": "Replicas that the policy asked for.",
            "target_replicas": "Replicas that Serve had as its target then.",
            "running_replicas": "Replicas that were running then.",
            "need_replicas": "Replicas (a fraction) that the queued work needs.",
            "mean_need_replicas": "The same, mean over the look-back.",
            "min_replicas": "Lower bound then.",
            "max_replicas": "Upper bound then.",
        }
        for name, text in gauges.items():
            family = GaugeMetricFamily(f"stepdial_autoscaling_{name}", text)
            if name in decision:
                family.add_metric([], decision[name])
            yield family
        by_tier = {
            "work_s": ("work_seconds", "Seconds of queued work by tier; an empty name is work of no known tier."),
            "target_queue_s": ("target_queue_seconds", "Seconds of work per replica to scale for."),
        }
        for key, (name, text) in by_tier.items():
            family = GaugeMetricFamily(f"stepdial_autoscaling_{name}", text, labels=["tier"])
            for tier, value in decision.get(key, {}).items():
                family.add_metric([tier], value)
            yield family
        age = GaugeMetricFamily("stepdial_autoscaling_decision_age_seconds", "Since the decision was published.")
        if decision:
            age.add_metric([], max(0.0, time.time() - decision["decided_at_s"]))
        yield age


class RouterMetrics:
    """One router's registry."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self.requests = Counter(
            "stepdial_requests", "Requests by endpoint, HTTP status and tier.", ["endpoint", "status", "tier"],
            registry=registry,
        )  # fmt: skip
        self.latency = Histogram(
            "stepdial_request_latency_seconds", "Arrival at the router to the last byte.", ["tier", "decoding"],
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.first_text = Histogram(
            "stepdial_first_text_seconds", "Arrival at the router to the first text.", ["tier", "decoding"],
            buckets=LATENCY_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.slo = Counter("stepdial_slo", "Answers with an SLO, by whether it was met.", ["tier", "met"],
                           registry=registry)  # fmt: skip
        self.refusals = Counter("stepdial_refusals", "Refusals before any forward, by code.", ["tier", "code"],
                                registry=registry)  # fmt: skip
        self.prediction = Histogram(
            "stepdial_latency_over_predicted_p95", "Actual latency over its predicted p95.", ["decoding"],
            buckets=RATIO_BUCKETS, registry=registry,
        )  # fmt: skip
        self.quality = Histogram(
            "stepdial_expected_quality", "Expected quality of answers, where it is known.", ["tier"],
            buckets=tuple(step / 20 for step in range(1, 21)), registry=registry,
        )  # fmt: skip
        self.floor = Gauge(
            "stepdial_tier_quality_floor", "Expected quality that answers of a tier may not fall below.", ["tier"],
            registry=registry,
        )  # fmt: skip
        self.autoscaling = AutoscalingMetrics()
        registry.register(self.autoscaling)
        self.output_tokens = Histogram("stepdial_output_tokens", "Output tokens of an answer.", ["decoding"],
                                       buckets=TOKEN_BUCKETS, registry=registry)  # fmt: skip
        self.replans = Counter("stepdial_replans", "Plans that a replica refused at admission.", registry=registry)
        self.failovers = Counter("stepdial_failovers", "Answers continued on another replica.", registry=registry)
        self.moves = Counter("stepdial_moves", "Answers moved to a replica with less to do.", registry=registry)
        self.disconnects = Counter("stepdial_client_disconnects", "Clients that left early.", registry=registry)

    def tell_floors(self, tiers: Sequence[Tier], ladder: Sequence[Rung]) -> None:
        """The floor of each tier: its own, or where lossy rungs are not allowed that of the rungs equal to AR."""
        equal = [rung.expected_quality for rung in equivalent_to_ar(ladder) if rung.expected_quality is not None]
        measured = any(rung.decoding is Decoding.AR and rung.expected_quality is not None for rung in ladder)
        for tier in tiers:
            floor = tier.min_expected_quality
            if not tier.lossy and measured:
                floor = max(floor or 0.0, min(equal))
            if floor is not None:
                self.floor.labels(tier.name).set(floor)

    def text(self) -> str:
        return generate_latest(self.registry).decode()


class _Merged(Collector):
    """Families of several texts, each text's samples with its own label."""

    def __init__(self, texts: Iterable[tuple[str, str, str]]) -> None:
        self._texts = list(texts)

    def collect(self) -> Iterator[Metric]:
        families: dict[str, Metric] = {}
        for label, value, text in self._texts:
            for family in text_string_to_metric_families(text):
                merged = families.setdefault(family.name, Metric(family.name, family.documentation, family.type))
                for sample in family.samples:
                    merged.add_sample(sample.name, {**sample.labels, label: value}, sample.value)
        yield from families.values()


def merge_texts(texts: Iterable[tuple[str, str, str]]) -> str:
    """One Prometheus text out of several; each is (label, value, text) and gets `label="value"` on every sample."""
    registry = CollectorRegistry()
    registry.register(_Merged(texts))
    return generate_latest(registry).decode()
