"""`POST /v1/plan` on a running cluster: the menu without a forward, and that it tells the truth."""

from __future__ import annotations

from typing import Any

import httpx
from openai import OpenAI

from engine.tiny.tasks import generate
from tests.deployments.alert_rules import metric_names, rules, series_names
from tests.e2e.test_failures import forwards_at_rest, total

MODEL = "stepdial-tiny"
MESSAGES: Any = next(iter(generate("test", 1, seed=8))).messages
CHAT = {"model": MODEL, "messages": MESSAGES, "max_tokens": 64, "temperature": 0, "ignore_eos": True}


def menu(url: str, body: dict[str, Any], status: int = 200) -> dict[str, Any]:
    answer = httpx.post(f"{url}/v1/plan", json=body, timeout=30)
    assert answer.status_code == status, answer.text
    said: dict[str, Any] = answer.json()
    return said


def test_the_menu_costs_no_forward_and_names_what_would_be_chosen(url: str) -> None:
    forwards = forwards_at_rest(url)
    said = menu(url, {**CHAT, "latency_slo_ms": 5000})
    assert total(url, "stepdial_engine_forwards_total") == forwards
    assert len(said["rungs"]) >= 3
    for row in said["rungs"]:
        assert 0 < row["predicted_p50_ms"] <= row["predicted_p95_ms"]
        assert row["accelerator_ms"] > 0
        assert 0 <= row["expected_quality"] <= 1
    chosen = said["chosen"]
    best = max(row["expected_quality"] for row in said["rungs"] if row["meets_slo"])
    assert said["rungs"][chosen["rung"]]["expected_quality"] == best
    assert {row["replica"] for row in said["replicas"]} == {chosen["replica"], *chosen["next_replicas"]}
    assert len(said["replicas"]) == 2


def test_the_answer_is_the_one_that_was_on_the_menu(url: str, client: OpenAI) -> None:
    said = menu(url, {**CHAT, "latency_slo_ms": 5000, "decoding": "diffusion"})
    answer: Any = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, max_tokens=64, temperature=0,
        extra_body={"ignore_eos": True, "latency_slo_ms": 5000, "decoding": "diffusion"},
    )  # fmt: skip
    row = said["rungs"][said["chosen"]["rung"]]
    assert answer.stepdial["expected_quality"] >= row["expected_quality"]
    assert answer.stepdial["latency_ms"] < 5000


def test_what_the_menu_would_refuse_is_refused(url: str) -> None:
    body = {**CHAT, "latency_slo_ms": 1}
    refused = menu(url, body)["refused"]
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == refused["status"] == 400
    assert answer.json()["error"]["param"] == refused["param"] == "latency_slo_ms"
    offered = menu(url, {**body, "latency_slo_ms": refused["smallest_feasible_slo_ms"] * 1.2})
    assert offered["refused"] is None


def test_completions_have_a_menu_too_and_bad_bodies_are_named(url: str) -> None:
    assert menu(url, {"model": MODEL, "prompt": [1, 300], "max_tokens": 8})["prompt_tokens"] == 2
    assert menu(url, {"model": MODEL}, 400)["error"]["param"] == "messages"
    assert menu(url, {**CHAT, "latency_slo_ms": "soon"}, 400)["error"]["param"] == "latency_slo_ms"
    assert menu(url, {**CHAT, "model": "gpt-17"}, 400)["error"]["param"] == "model"


def test_a_tiers_bound_is_a_400_that_names_it(url: str) -> None:
    body = {**CHAT, "service_tier": "standard", "latency_slo_ms": 200}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30)
    assert answer.status_code == 400
    assert "allowed in tier 'standard': at least 1000" in answer.json()["error"]["message"]


def test_a_conversation_goes_back_to_the_replica_that_has_it(client: OpenAI) -> None:
    """Its prefix is worth more than an equally idle replica without it."""
    prompt = [1, *range(300, 492)]
    first: Any = client.completions.create(model=MODEL, prompt=prompt, max_tokens=4, temperature=0)
    for extra in range(3):
        again: Any = client.completions.create(model=MODEL, prompt=[*prompt, 500 + extra], max_tokens=4, temperature=0)
        assert again.stepdial["replica"] == first.stepdial["replica"]
        assert again.usage.prompt_tokens_details.cached_tokens == 192


def test_every_metric_of_the_alert_rules_is_served(url: str) -> None:
    known = series_names(httpx.get(f"{url}/metrics", timeout=10).text)
    assert {name for rule in rules() for name in metric_names(rule["expr"])} <= known
