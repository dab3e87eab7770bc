"""What a router learns from answers: only what they can tell, and only for requests of their kind."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import pytest

from deployments.experience import Answered
from deployments.job import Job
from deployments.load import ReplicaLoad
from deployments.openai_types import CompletionRequest
from deployments.planner import Planned
from deployments.planning import Planning
from deployments.settings import AppArgs
from engine.plan import Decoding, PlanEntry, Rung, diffusion, self_speculation
from engine.request import parse_options

LOAD = ReplicaLoad("a")
ENOUGH = 30


@pytest.fixture
def planning() -> Planning:
    return Planning(AppArgs())


def planned(planning: Planning, **fields: Any) -> tuple[Job, Planned]:
    body = {"model": "stepdial-tiny", "prompt": [10, 11, 12], "max_tokens": 64, **fields}
    parsed = parse_options(CompletionRequest, body)
    assert isinstance(parsed, CompletionRequest)
    job = planning.job(parsed, {}, "id", time.perf_counter())
    outcome = planning.plan(job, [LOAD])
    assert isinstance(outcome, Planned)
    return job, outcome


def answered(rung: Rung, engine_ms: float, **said: Any) -> Answered:
    values: dict[str, Any] = {"stopped": True, "completion_tokens": 40, "overhead_ms": 3.0, **said}
    return Answered(entries=[PlanEntry(0, rung).to_dict()], engine_ms=engine_ms, **values)


def learn(planning: Planning, share: float, rung: Rung | None = None, **fields: Any) -> None:
    """One answer that took `share` of what was predicted before any correction."""
    job, plan = planned(planning, **fields)
    engine_ms = plan.prediction.p95_s * 1e3 / plan.scale * share
    planning.experience.learn(job, plan, answered(rung or plan.plan.first, engine_ms))


def test_predictions_of_a_tier_follow_its_answers_and_settle(planning: Planning) -> None:
    """The correction is of what was predicted without it, or it would correct itself for ever."""
    before = {slo: planned(planning, latency_slo_ms=slo)[1].prediction.p95_s for slo in (5000, None)}
    for _ in range(5 * ENOUGH):
        learn(planning, 0.7, latency_slo_ms=5000)
    _, plan = planned(planning, latency_slo_ms=5000)
    assert plan.scale == pytest.approx(0.7)
    # Lengths were learned too, so the prediction itself is another one now; its correction is what counts.
    assert plan.prediction.p95_s < before[5000]
    assert planned(planning)[1].scale == 1.0, "without a deadline it is another kind of request"
    assert planned(planning, latency_slo_ms=5000, service_tier="standard")[1].scale == 1.0


def test_an_answer_that_left_its_rung_says_nothing_of_the_prediction(planning: Planning) -> None:
    for _ in range(ENOUGH):
        learn(planning, 5.0, rung=diffusion(8, 3), latency_slo_ms=5000)
    assert planned(planning, latency_slo_ms=5000)[1].scale == 1.0


def learn_ends(planning: Planning, first: Rung, last: Rung, **fields: Any) -> Planned:
    """Answers of 20 tokens that ended with a block of `last`, at twice what was predicted; then a new plan."""
    for _ in range(ENOUGH):
        job, plan = planned(planning, **fields)
        entries = [PlanEntry(0, first).to_dict(), PlanEntry(16, last).to_dict()]
        said = answered(first, plan.prediction.p95_s * 1e3 / plan.scale * 2, completion_tokens=20)
        planning.experience.learn(job, plan, replace(said, entries=entries))
    return planned(planning, **fields)[1]


def test_ends_of_the_same_tokens_count_for_the_first_rung_where_no_deadline_chose_them(planning: Planning) -> None:
    first = planned(planning)[1].plan.first
    assert first.decoding is Decoding.SELF_SPECULATION
    after = learn_ends(planning, first, self_speculation(8))
    assert after.scale == pytest.approx(2.0)
    assert "this tier, rung" in after.length.source
    assert after.length.reckoned == 20


def test_with_a_deadline_they_count_for_its_length_alone(planning: Planning) -> None:
    first = planned(planning, latency_slo_ms=5000)[1].plan.first
    after = learn_ends(planning, first, self_speculation(8), latency_slo_ms=5000)
    assert after.scale == 1.0
    assert "this tier, rung" in after.length.source


def test_tokens_of_another_quality_say_nothing_of_the_first_rung(planning: Planning) -> None:
    after = learn_ends(planning, planned(planning)[1].plan.first, diffusion(8, 3))
    assert after.scale == 1.0
    assert "this tier and prompt length" in after.length.source


def test_the_path_is_measured_on_answers_that_went_straight_to_their_replica(planning: Planning) -> None:
    job, plan = planned(planning)
    before = planning.experience.overhead_ms.value
    for _ in range(ENOUGH):
        planning.experience.learn(job, plan, answered(plan.plan.first, 50.0, overhead_ms=900.0, replanned=True))
    assert planning.experience.overhead_ms.value == before
    for _ in range(ENOUGH):
        planning.experience.learn(job, plan, answered(plan.plan.first, 50.0, overhead_ms=4.0 + plan.elapsed_ms))
    assert planning.experience.overhead_ms.value == pytest.approx(4.0), "what had passed is no part of it"


def test_what_has_passed_when_a_plan_is_made_is_added_once(planning: Planning) -> None:
    fields = {"model": "stepdial-tiny", "prompt": [10, 11, 12], "max_tokens": 64}
    parsed = parse_options(CompletionRequest, fields)
    assert isinstance(parsed, CompletionRequest)
    job = planning.job(parsed, {}, "id", time.perf_counter() - 5.0)
    plan = planning.plan(job, [LOAD])
    assert isinstance(plan, Planned)
    assert 5000.0 <= plan.elapsed_ms < 6000.0
    for _ in range(ENOUGH):
        planning.experience.learn(job, plan, answered(plan.plan.first, 50.0, overhead_ms=5000.0))
    assert planning.experience.overhead_ms.value == 0.0, "all of it had passed"
    assert planning.ask(job).extra_ms == pytest.approx(planning.ask(job).elapsed_ms, abs=50.0)


def test_answers_that_a_limit_cut_do_not_shorten_what_is_expected(planning: Planning) -> None:
    job, plan = planned(planning, max_tokens=64)
    for _ in range(ENOUGH):
        said = answered(plan.plan.first, 50.0, stopped=False, completion_tokens=8)
        planning.experience.learn(job, plan, said)
    assert planned(planning, max_tokens=64)[1].length.reckoned == 64
