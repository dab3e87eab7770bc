"""Metrics: names, and the merged text that a Prometheus parser reads."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from deployments.metrics import EngineMetrics, RouterMetrics, merge_texts
from engine.cost_model import ForwardCostModel
from engine.stats import EngineStats


def stats() -> EngineStats:
    return EngineStats(
        running=3, forwards=7, generated_tokens={"ar": 5}, slots={"prefill": 9}, cost_model=ForwardCostModel().to_dict()
    )


def test_replicas_are_told_apart_and_families_come_once() -> None:
    router = RouterMetrics()
    router.requests.labels("chat", "200", "default").inc()
    text = merge_texts(
        [("router", "r", router.text()), ("replica", "a", EngineMetrics(stats).text()),
         ("replica", "b", EngineMetrics(stats).text())]
    )  # fmt: skip
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert text.count("# TYPE stepdial_engine_forwards_total ") == 1
    samples = families["stepdial_engine_forwards"].samples
    assert {sample.labels["replica"]: sample.value for sample in samples} == {"a": 7.0, "b": 7.0}
    assert families["stepdial_engine_generated_tokens"].samples[0].labels["decoding"] == "ar"
    assert families["stepdial_requests"].samples[0].labels == {
        "endpoint": "chat", "status": "200", "tier": "default", "router": "r",
    }  # fmt: skip
    assert all(name.startswith("stepdial_") for name in families)
    assert len(families) >= 8


def test_a_histogram_survives_the_merge() -> None:
    router = RouterMetrics()
    router.latency.labels("default", "ar").observe(0.03)
    families = {f.name: f for f in text_string_to_metric_families(merge_texts([("router", "r", router.text())]))}
    family = families["stepdial_request_latency_seconds"]
    assert family.type == "histogram"
    buckets = {s.labels["le"]: s.value for s in family.samples if s.name.endswith("_bucket")}
    assert buckets["0.02"] == 0
    assert buckets["0.05"] == 1
