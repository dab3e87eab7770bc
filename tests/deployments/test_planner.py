"""The planner: what is chosen, what is refused, and that a refusal's advice works."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.load import ReplicaLoad
from deployments.planner import Goal, Planned, Refusal, goal_of, make_plan, rungs_for
from deployments.prediction import Size, most_forwards, predict
from deployments.quality import QualityMap
from deployments.tiers import SERVICE_TIERS, TIERS, find_tier
from engine.plan import Decoding, Rung, diffusion, self_speculation
from engine.request import GenerationOptions

BLOCK = 32


def measured(rung: Rung, quality: float, tokens_per_forward: float) -> Rung:
    from dataclasses import replace

    return replace(rung, expected_quality=quality, expected_tokens_per_forward=tokens_per_forward)


LADDER = (
    measured(Rung(Decoding.AR), 0.95, 1.0),
    measured(self_speculation(8), 0.95, 2.5),
    measured(diffusion(32, 16), 0.93, 1.9),
    measured(diffusion(32, 8), 0.90, 3.5),
    measured(diffusion(32, 4), 0.80, 6.4),
    measured(diffusion(32, 1), 0.30, 16.0),
)
QUALITY = QualityMap(LADDER, tuple(rung for rung in LADDER if rung.is_diffusion), 0.0, {r.policy(): r for r in LADDER})
DEFAULT = TIERS[0]


def plan(slo_ms: float | None, load: ReplicaLoad, output: int = 100, **fields: object) -> Planned | Refusal:
    options = GenerationOptions(latency_slo_ms=slo_ms, **fields)  # type: ignore[arg-type]
    goal = goal_of(options, DEFAULT)
    rungs = rungs_for(options, DEFAULT, False, goal, QUALITY, BLOCK)
    return make_plan(rungs, goal, Size(50, output), [load], overhead_ms=20)


def quality(planned: Planned) -> float:
    value = planned.plan.first.expected_quality
    assert value is not None
    return value


loads = st.builds(
    ReplicaLoad,
    replica=st.just("a"),
    queue_s=st.floats(0, 20),
    running=st.integers(0, 64),
    slots=st.floats(0, 500),
    context=st.floats(0, 20_000),
    base_s=st.floats(1e-4, 0.02),
    per_token_s=st.floats(0, 1e-3),
    per_context_s=st.floats(0, 1e-6),
    tail_ratio=st.floats(1, 5),
    engine_s=st.floats(0, 5e-3),
)


@given(loads, st.floats(1, 60_000), st.floats(1, 10), st.integers(1, 256))
@settings(deadline=None)
def test_a_looser_slo_never_lowers_quality(load: ReplicaLoad, slo_ms: float, factor: float, output: int) -> None:
    tight, loose = plan(slo_ms, load, output), plan(slo_ms * factor, load, output)
    if isinstance(tight, Planned):
        assert isinstance(loose, Planned)
        assert quality(loose) >= quality(tight)


@given(loads, st.floats(1, 60_000), st.integers(1, 256))
@settings(deadline=None)
def test_what_is_planned_fits_and_what_is_refused_says_what_would(
    load: ReplicaLoad, slo_ms: float, output: int
) -> None:
    answer = plan(slo_ms, load, output)
    if isinstance(answer, Planned):
        assert answer.plan.predicted_p95_ms is not None
        assert answer.plan.predicted_p95_ms <= slo_ms + 0.1
        assert answer.plan.slo_ms == slo_ms
    else:
        assert answer.smallest_feasible_slo_ms is not None
        assert answer.smallest_feasible_slo_ms > slo_ms
        assert (answer.retry_after_s is not None) == (answer.status == 429)
        assert isinstance(plan(answer.smallest_feasible_slo_ms, load, output), Planned)


@given(loads, st.integers(1, 400), st.sampled_from(LADDER))
@settings(deadline=None)
def test_load_and_length_never_make_a_prediction_shorter(load: ReplicaLoad, output: int, rung: Rung) -> None:
    busy, idle = predict(rung, Size(50, output), load), predict(rung, Size(50, output), load.idle())
    assert idle.p95_s <= busy.p95_s + 1e-9
    assert busy.p50_s <= busy.p95_s
    assert busy.first_text_p95_s <= busy.p95_s * 1.5 + 1e-6 or rung.is_diffusion
    assert predict(rung, Size(50, output + 40), load).p50_s >= busy.p50_s - 1e-9


def test_known_forwards() -> None:
    assert most_forwards(Rung(Decoding.AR), 100) == 100
    assert most_forwards(diffusion(32, 4), 100) == 4 * 5
    assert most_forwards(diffusion(32, 32), 32) == 32  # the first token is the seed: 31 masks, then the commit
    assert most_forwards(self_speculation(8), 10) == 20


def test_budgets_follow_the_slo() -> None:
    load = ReplicaLoad("a", base_s=5e-3, per_token_s=1e-4)
    loose, tight = plan(5_000, load, decoding="diffusion"), plan(330, load, decoding="diffusion")
    assert isinstance(loose, Planned)
    assert isinstance(tight, Planned)
    assert loose.plan.first.refinement_steps == 16
    assert tight.plan.first.refinement_steps == 4
    assert "4 steps" in tight.plan.reason


def test_equal_quality_starts_on_the_cheapest_and_leaves_the_choice_to_the_engine() -> None:
    answer = plan(60_000, ReplicaLoad("a"))
    assert isinstance(answer, Planned)
    assert [rung.decoding.value for rung in answer.plan.ladder] == ["ar", "self_speculation"]
    assert answer.plan.first.decoding is Decoding.SELF_SPECULATION


def test_no_slo_stays_on_rungs_equal_to_ar() -> None:
    answer = plan(None, ReplicaLoad("a", queue_s=100, running=50, slots=800))
    assert isinstance(answer, Planned)
    assert {rung.expected_quality for rung in answer.plan.ladder} == {0.95}
    assert answer.plan.slo_ms is None


@pytest.mark.parametrize("name", ["default", "standard", "scale"])
def test_a_named_exact_tier_keeps_quality_even_with_an_slo(name: str) -> None:
    options = GenerationOptions(latency_slo_ms=200)
    tier = find_tier(name, TIERS, SERVICE_TIERS)
    rungs = rungs_for(options, tier, True, goal_of(options, tier), QUALITY, BLOCK)
    assert all(rung.exact for rung in rungs)


def test_a_lossy_tier_uses_lossy_rungs_above_its_floor() -> None:
    tier = find_tier("priority", TIERS, SERVICE_TIERS)
    rungs = rungs_for(GenerationOptions(), tier, True, goal_of(GenerationOptions(), tier), QUALITY, BLOCK)
    assert min(rung.expected_quality or 0 for rung in rungs) == 0.80


def test_an_idle_replica_that_is_too_slow_is_400_and_load_is_429() -> None:
    load = ReplicaLoad("a", base_s=5e-3, per_token_s=1e-4, running=20, slots=640, queue_s=12.0)
    hopeless, busy = plan(30, load), plan(300, load)
    assert isinstance(hopeless, Refusal)
    assert isinstance(busy, Refusal)
    assert (hopeless.status, busy.status) == (400, 429)
    assert hopeless.retry_after_s is None
    assert busy.retry_after_s == 12
    assert "latency_slo_ms is 30" in hopeless.message


def test_nothing_serves_is_503_with_retry_after() -> None:
    answer = make_plan(LADDER, Goal(None, None, False, "degrade"), Size(5, 5), [], 10)
    assert isinstance(answer, Refusal)
    assert answer.status == 503
    assert answer.retry_after_s


def test_degrade_answers_late_on_the_fastest_rung() -> None:
    answer = plan(20, ReplicaLoad("a"), on_infeasible="degrade")
    assert isinstance(answer, Planned)
    assert answer.plan.first.refinement_steps == 1
    assert answer.plan.predicted_p95_ms is not None
    assert answer.plan.predicted_p95_ms > 20
    assert "no rung meets the SLO of 20 ms" in answer.plan.reason


def test_the_least_loaded_replica_is_planned_for() -> None:
    answer = make_plan(
        LADDER, Goal(9_000, None, True, "reject"), Size(5, 50), [ReplicaLoad("a", queue_s=3), ReplicaLoad("b")], 10
    )
    assert isinstance(answer, Planned)
    assert answer.replica == "b"


def test_a_time_to_first_text_alone_picks_what_starts_early() -> None:
    options = GenerationOptions(ttft_slo_ms=80)
    goal = goal_of(options, DEFAULT)
    rungs = rungs_for(options, DEFAULT, False, goal, QUALITY, BLOCK)
    answer = make_plan(rungs, goal, Size(20, 200), [ReplicaLoad("a")], 20)
    assert isinstance(answer, Planned)
    assert not answer.plan.first.is_diffusion


def test_a_pinned_request_keeps_its_pin() -> None:
    answer = plan(10_000, ReplicaLoad("a"), decoding="diffusion", block_length=16, refinement_steps=3)
    assert isinstance(answer, Planned)
    assert (answer.plan.first.block_length, answer.plan.first.refinement_steps) == (16, 3)
    assert answer.plan.pinned


def test_a_block_length_that_was_not_measured_still_gets_budgets() -> None:
    answer = plan(10_000, ReplicaLoad("a"), decoding="diffusion", block_length=12)
    assert isinstance(answer, Planned)
    assert answer.plan.first.block_length == 12


def test_quality_is_not_promised_outside_the_calibrated_range() -> None:
    rung = diffusion(32, 8)
    assert QUALITY.expected_quality(rung, 0.0) == 0.90
    assert QUALITY.expected_quality(rung, 0.7) is None
    assert QualityMap().expected_quality(rung, 0.0) is None
