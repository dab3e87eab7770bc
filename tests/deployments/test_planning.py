"""A router's planning on the model that ships: what a body becomes, its menu, and what its answer may claim."""

from __future__ import annotations

import hashlib
import time
from typing import Any

import pytest

from deployments.course import Course, stepdial_object
from deployments.job import Job
from deployments.keys import ApiKey
from deployments.load import ReplicaLoad
from deployments.openai_types import ChatCompletionRequest, CompletionRequest, request_kind
from deployments.planner import Planned, Refusal
from deployments.planning import Planning
from deployments.reason import moved_reason
from deployments.reported_plan import rungs_used
from deployments.settings import AppArgs
from engine.errors import InvalidRequest
from engine.events import Spent
from engine.plan import PlanEntry, diffusion, self_speculation
from engine.request import parse_options

CHAT = {"model": "stepdial-tiny", "messages": [{"role": "user", "content": "hello"}]}
LOADS = [ReplicaLoad("a"), ReplicaLoad("b", queue_s=1.0, running=4, sequences=4, slots=64)]


@pytest.fixture(scope="module")
def planning() -> Planning:
    return Planning(AppArgs())


def job(planning: Planning, headers: dict[str, str] | None = None, key: ApiKey | None = None, **fields: Any) -> Job:
    body = {**CHAT, **fields}
    parsed = parse_options(request_kind(body), body)
    assert isinstance(parsed, (ChatCompletionRequest, CompletionRequest))
    return planning.job(parsed, headers or {}, "id", time.perf_counter(), key)


def test_a_plan_carries_length_weight_and_ranking(planning: Planning) -> None:
    planned = planning.plan(job(planning, max_tokens=40, service_tier="priority"), LOADS)
    assert isinstance(planned, Planned)
    assert planned.plan.expected_tokens == 40
    assert planned.plan.weight == 4
    assert planned.ranked == ("a", "b")


def test_a_length_that_the_request_fixes_is_reckoned_with(planning: Planning) -> None:
    assert job(planning, max_tokens=2000, ignore_eos=True).length.reckoned == 2000
    assert job(planning, max_tokens=2000, min_tokens=1500).length.median >= 1500
    assert job(planning, max_tokens=2000).length.reckoned == planning.args.expected_output_tokens


def test_a_tight_slo_is_refused_with_one_that_is_accepted(planning: Planning) -> None:
    refused = planning.plan(job(planning, latency_slo_ms=5, max_tokens=64), LOADS)
    assert isinstance(refused, Refusal)
    assert refused.smallest_feasible_slo_ms is not None
    # Time goes on meanwhile, and a request pays for what has passed since it arrived.
    again = job(planning, latency_slo_ms=refused.smallest_feasible_slo_ms + 50, max_tokens=64)
    assert isinstance(planning.plan(again, LOADS), Planned)


def test_a_reason_claims_no_quality_outside_the_calibrated_temperatures(planning: Planning) -> None:
    cold, hot = (
        planning.plan(job(planning, max_tokens=40, latency_slo_ms=5000, temperature=value), LOADS) for value in (0, 2)
    )
    assert isinstance(cold, Planned)
    assert isinstance(hot, Planned)
    assert "expected quality 0.9" in cold.plan.reason
    assert "expected quality" not in hot.plan.reason


def test_a_reason_says_where_the_engine_went() -> None:
    draft, coarse = self_speculation(32), diffusion(16, 1)
    assert moved_reason(draft, [draft, draft]) == ""
    assert moved_reason(draft, [draft, coarse, draft]).endswith("also used diffusion over blocks of 16 with 1 step")
    assert moved_reason(draft, [coarse]).endswith("used diffusion over blocks of 16 with 1 step instead")


def test_a_replicas_refusal_names_field_value_and_what_is_allowed(planning: Planning) -> None:
    asked = job(planning, latency_slo_ms=90, max_tokens=40)
    refusal = planning.refusal(asked, LOADS, earliest_ms=200.0)
    assert refusal.status == 429
    assert refusal.smallest_feasible_slo_ms is not None
    assert refusal.smallest_feasible_slo_ms > 200
    assert refusal.message.startswith("latency_slo_ms is 90, ")
    assert f"at least {refusal.smallest_feasible_slo_ms}" in refusal.message


def test_a_tiers_bound_holds_for_headers_too(planning: Planning) -> None:
    with pytest.raises(InvalidRequest, match="latency_slo_ms is 500; allowed in tier 'standard'"):
        job(planning, {"x-stepdial-latency-slo-ms": "500"}, service_tier="standard")


def test_the_key_is_the_cache_salt_and_bounds_the_weight(planning: Planning) -> None:
    key = ApiKey(name="lab", sha256=hashlib.sha256(b"k").hexdigest(), max_weight=3)
    plain, keyed = job(planning, service_tier="realtime"), job(planning, key=key, service_tier="realtime")
    assert keyed.fields["cache_salt"] == key.salt(None)
    assert "cache_salt" not in plain.fields
    assert set(keyed.page_keys).isdisjoint(plain.page_keys) or not plain.page_keys
    assert (plain.weight, keyed.weight) == (8, 3)


def test_the_menu_of_a_body_says_what_would_be_chosen(planning: Planning) -> None:
    asked = job(planning, max_tokens=64, latency_slo_ms=3000)
    said = planning.explained(asked, LOADS)
    assert said["slo_ms"] == 3000
    assert said["output_tokens"]["reckoned"] == 64
    rows = said["rungs"]
    assert len(rows) == len(asked.menu.rungs)
    for row in rows:
        assert 0 < row["predicted_p50_ms"] <= row["predicted_p95_ms"]
        assert row["accelerator_ms"] > 0
        assert row["replica"] in ("a", "b")
    chosen = said["chosen"]
    assert rows[chosen["rung"]]["meets_slo"]
    assert chosen["replica"] == "a"
    assert chosen["reason"]
    assert chosen["rung"] in chosen["ladder"]
    assert said["refused"] is None
    assert [row["replica"] for row in said["replicas"]] == ["a", "b"]


def test_the_menu_says_what_would_be_refused(planning: Planning) -> None:
    said = planning.explained(job(planning, max_tokens=64, latency_slo_ms=5), LOADS)
    assert said["chosen"] is None
    assert said["refused"]["status"] == 400
    least = min(row["smallest_feasible_slo_ms"] for row in said["rungs"])
    assert said["refused"]["smallest_feasible_slo_ms"] == pytest.approx(least, abs=2), "time passes in between"
    nobody = planning.explained(job(planning, max_tokens=64), [])
    assert nobody["refused"]["status"] == 503
    assert all(row["predicted_p95_ms"] is None for row in nobody["rungs"])


def test_quality_of_an_answer_is_that_of_the_worst_rung_used(planning: Planning) -> None:
    ladder = planning.quality.ladder
    best, worst = ladder[0], ladder[-1]
    assert best.expected_quality is not None
    assert worst.expected_quality is not None
    assert worst.expected_quality < best.expected_quality
    both = [PlanEntry(0, best).to_dict(), PlanEntry(40, worst).to_dict()]
    assert planning.answer_quality(both, 0.0) == worst.expected_quality
    assert planning.answer_quality(both[:1], 0.0) == best.expected_quality
    unused = [PlanEntry(0, worst).to_dict(), PlanEntry(0, best).to_dict()]
    assert planning.answer_quality(unused, 0.0) == best.expected_quality, "the first made no token"
    unknown = [PlanEntry(0, best).to_dict(), PlanEntry(8, diffusion(7, 3)).to_dict()]
    assert planning.answer_quality(unknown, 0.0) is None


def test_entries_are_read_back_as_the_rungs_that_they_name() -> None:
    rungs = [self_speculation(16), self_speculation(8, 0.9), diffusion(32, 4, 0.9), diffusion(16)]
    entries = [PlanEntry(10 * place, rung).to_dict() for place, rung in enumerate(rungs)]
    assert [rung.policy() for rung in rungs_used(entries)] == [rung.policy() for rung in rungs]


@pytest.mark.parametrize("body", [{}, {"messages": [], "prompt": "x"}])
def test_a_body_that_is_neither_chat_nor_completion_is_named(body: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest, match="messages"):
        request_kind(body)


def test_an_answer_says_what_happened_on_its_way(planning: Planning) -> None:
    asked = job(planning, latency_slo_ms=60_000, ttft_slo_ms=50_000, max_tokens=64, temperature=0)
    planned = planning.plan(asked, LOADS)
    assert isinstance(planned, Planned)
    rungs = [{"from_token": 40, **planned.plan.first.to_dict()}]

    def said(course: Course, cut: bool = False) -> dict[str, Any]:
        report = {"plan": rungs, "replica": "b", "forwards": 5, "accelerator_ms": 2.5, "tokens_per_forward": 4.0}
        return stepdial_object(planning, asked, planned.plan, course, report, 60, cut)

    plain = said(Course(first_text_s=0.02))
    assert (plain["reason"], plain["ttft_ms"], plain["slo_met"]) == (planned.plan.reason, 20.0, True)
    assert (plain["replica"], plain["forwards"], plain["tokens_per_forward"]) == ("b", 5, 4.0)
    assert not said(Course(first_text_s=51.0))["slo_met"]
    assert not said(Course())["slo_met"], "no text is no text in time"
    before = Spent(denoise_steps=7, forwards=10, accelerator_ms=4.0)
    far = said(Course(first_text_s=0.02, base=40, failures=1, moves=2, replans=2, spent=before), cut=True)
    assert (far["forwards"], far["accelerator_ms"], far["denoise_steps"]) == (15, 6.5, 7)
    assert far["tokens_per_forward"] == 4.0, "60 tokens in 15 forwards"
    assert far["reason"] == planned.plan.reason + (
        "; cut at the deadline; planned again after a replica refused 2 times; a replica failed once; moved to a "
        "replica with less to do 2 times; continued after 40 tokens"
    )
    # Of what came before nothing is reported, so that no more is claimed than all of the ladder has.
    worst = planned.plan.ladder[-1].expected_quality
    assert worst is not None
    assert far["expected_quality"] <= worst
