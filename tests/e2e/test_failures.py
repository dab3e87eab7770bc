"""Clients that leave, replicas that die, and the metrics that show it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
import ray
from openai import OpenAI
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import wait_until_ready

MODEL = "stepdial-tiny"
LONG: dict[str, Any] = {
    "model": MODEL, "prompt": [1, 300, 301, 302], "max_tokens": 2000, "min_tokens": 2000, "temperature": 0, "seed": 1,
    "decoding": "ar",
}  # fmt: skip


def total(url: str, name: str, **labels: str) -> float:
    """Sum of a metric over replicas and routers."""
    text = httpx.get(f"{url}/metrics", timeout=10).text
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def eventually(condition: Callable[[], bool], seconds: float) -> bool:
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if condition():
            return True
        time.sleep(0.1)
    return condition()


def forwards_at_rest(url: str) -> float:
    """Forwards of all replicas so far, once what earlier tests left unread has been cancelled there."""
    left = ("stepdial_engine_sequences_running", "stepdial_engine_sequences_waiting")
    assert eventually(lambda: not any(total(url, name) for name in left), 2.0)
    return total(url, "stepdial_engine_forwards_total")


def test_metrics_of_engine_and_router_parse(url: str, client: OpenAI) -> None:
    before = total(url, "stepdial_requests_total", endpoint="completions", status="200")
    client.completions.create(model=MODEL, prompt=[1, 300], max_tokens=8)
    assert total(url, "stepdial_requests_total", endpoint="completions", status="200") == before + 1
    families = {f.name: f for f in text_string_to_metric_families(httpx.get(f"{url}/metrics").text)}
    assert {"stepdial_engine_queue_seconds", "stepdial_engine_forwards", "stepdial_engine_generated_tokens",
            "stepdial_engine_kv_pages_in_use", "stepdial_request_latency_seconds", "stepdial_first_text_seconds",
            "stepdial_output_tokens", "stepdial_latency_over_predicted_p95"} <= set(families)  # fmt: skip
    replicas = {sample.labels["replica"] for sample in families["stepdial_engine_forwards"].samples}
    assert len(replicas) == 2


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_its_sequence_at_once(url: str, address: str, stream: bool) -> None:
    cancelled = total(url, "stepdial_engine_finished_total", reason="cancelled")
    body = {**LONG, "stream": stream}
    if stream:
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=30) as answer:
            next(answer.iter_lines())
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{address}/v1/completions", json=body, timeout=0.4)
    forwards = forwards_at_rest(url)
    assert total(url, "stepdial_engine_finished_total", reason="cancelled") == cancelled + 1
    assert total(url, "stepdial_engine_kv_pages_in_use") == 0
    time.sleep(0.3)
    assert total(url, "stepdial_engine_forwards_total") == forwards, "nothing runs for a client that left"


def test_a_stream_goes_on_when_its_replica_dies(url: str, client: OpenAI) -> None:
    wait_until_ready(url, 2)
    asked = {**LONG, "stream": True}
    text, said, killed = "", {}, ""
    with httpx.stream("POST", f"{url}/v1/completions", json=asked, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += event["choices"][0]["text"] if event["choices"] else ""
            said = event.get("stepdial", said)
            if not killed and len(text) > 20:
                killed = answer.headers["x-stepdial-replica"]
                ray.kill(ray.get_actor(f"SERVE_REPLICA::stepdial#Replica#{killed}", namespace="serve"))
    assert "continued after" in said["reason"]
    assert said["replica"] != killed
    assert said["forwards"] >= LONG["max_tokens"], "what both replicas spent: AR takes a forward for every token"
    reference = client.completions.create(
        model=MODEL, prompt=LONG["prompt"], max_tokens=LONG["max_tokens"], temperature=0, seed=1,
        extra_body={"decoding": "ar", "min_tokens": LONG["min_tokens"], "cache_salt": "reference"},
    )  # fmt: skip
    assert text == reference.choices[0].text
    wait_until_ready(url, 2)
