"""The dial: an SLO becomes a budget, what cannot be met is refused before any forward."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest
from openai import OpenAI

from engine.tiny.tasks import generate

MODEL = "stepdial-tiny"
MESSAGES: Any = next(iter(generate("test", 1, seed=8))).messages


def ask(client: OpenAI, slo_ms: float | None, **extra: Any) -> dict[str, Any]:
    body = {"ignore_eos": True, "max_tokens": 64, **extra}
    if slo_ms is not None:
        body["latency_slo_ms"] = slo_ms
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=body.pop("max_tokens"), extra_body=body
    )  # fmt: skip
    said: dict[str, Any] = answer.stepdial  # type: ignore[attr-defined]
    return said


def smallest(client: OpenAI, **extra: Any) -> float:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, 1, **extra)
    assert caught.value.code == "slo_infeasible"
    assert caught.value.param == "latency_slo_ms"
    assert isinstance(caught.value.body, dict)
    return float(caught.value.body["smallest_feasible_slo_ms"])


def test_the_same_question_with_two_slos_gets_two_budgets_and_meets_both(client: OpenAI) -> None:
    # Long enough for the forwards to count for more than what lies around them.
    long: dict[str, Any] = {"decoding": "diffusion", "max_tokens": 320}
    # Just enough for the fastest rung.
    tight_ms = smallest(client, **long) * 1.05
    tight, loose = ask(client, tight_ms, **long), ask(client, 10_000, **long)
    assert tight["decoding"] == loose["decoding"] == "diffusion"
    assert tight["slo_met"] is True
    assert loose["slo_met"] is True
    assert tight["denoise_steps"] <= loose["denoise_steps"]
    assert tight["expected_quality"] < loose["expected_quality"]
    assert tight["plan"][0]["audit"] == loose["plan"][0]["audit"] == "off"
    assert (tight["block_length"], tight["refinement_steps"]) != (loose["block_length"], loose["refinement_steps"])
    assert tight["predicted_p95_ms"] <= tight_ms
    assert loose["slo_ms"] == 10_000


def test_what_a_refusal_names_is_accepted(client: OpenAI) -> None:
    named_ms = smallest(client, decoding="diffusion")
    for _ in range(5):
        try:
            said = ask(client, named_ms * 1.2, decoding="diffusion")
        except openai.RateLimitError as error:
            # The load rose since the refusal; what is named now is what counts.
            body: Any = error.body
            named_ms = float(body["smallest_feasible_slo_ms"])
        else:
            assert said["refinement_steps"] is not None
            return
    pytest.fail(f"five SLOs that a refusal named were refused, the last {named_ms} ms")


def test_degrade_answers_and_says_that_it_is_late(client: OpenAI) -> None:
    said = ask(client, 1, on_infeasible="degrade", decoding="diffusion")
    assert said["slo_met"] is False
    assert "no rung meets the SLO of 1 ms" in said["reason"]


def test_cut_returns_what_is_there(client: OpenAI) -> None:
    said = ask(client, 60, on_infeasible="degrade", on_deadline="cut", decoding="ar", max_tokens=900)
    assert "cut at the deadline" in said["reason"]
    assert said["latency_ms"] < 3_000


def test_a_header_states_an_slo(url: str) -> None:
    body = {"model": MODEL, "messages": MESSAGES, "max_tokens": 16, "temperature": 0}
    headers = {"x-stepdial-latency-slo-ms": "20000"}
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=30)
    assert answer.json()["stepdial"]["slo_ms"] == 20_000
    assert answer.headers["x-stepdial-slo-met"] == "true"
    assert float(answer.headers["x-stepdial-predicted-p95-ms"]) <= 20_000


@pytest.mark.parametrize(("tier", "name", "slo_ms"), [("priority", "interactive", 2000), ("flex", "batch", None)])
def test_openais_tiers(client: OpenAI, tier: Any, name: str, slo_ms: float | None) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=MESSAGES, temperature=0, max_tokens=16, service_tier=tier
    )
    assert answer.service_tier == tier
    said: dict[str, Any] = answer.stepdial  # type: ignore[attr-defined]
    assert (said["tier"], said["slo_ms"]) == (name, slo_ms)


def test_a_pinned_budget_is_kept(client: OpenAI) -> None:
    said = ask(client, None, decoding="diffusion", block_length=16, refinement_steps=3)
    assert (said["decoding"], said["block_length"], said["refinement_steps"]) == ("diffusion", 16, 3)
    blocks = -(-64 // 16)
    assert said["denoise_steps"] <= 3 * blocks
