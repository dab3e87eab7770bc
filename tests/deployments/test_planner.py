"""The planner: what is chosen, what is refused, and that a refusal's advice works."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deployments.goal import goal_of
from deployments.history import Length
from deployments.load import ReplicaLoad
from deployments.planner import Planned, Refusal, make_plan, predictions_at
from deployments.prediction import predict_all
from deployments.prediction_tables import LoadTable, RungTable
from engine.admission import Admission, Newcomer
from engine.cost_model import ForwardCost, ForwardCostModel
from engine.curve import Curve
from engine.decoding.rung_choice import Crowd
from engine.outlook import Company, Outlook
from engine.pace import SAFETY, Pacing, Riders, Step, StepTable, longest_s
from engine.plan import AR, Decoding, Plan, self_speculation
from engine.prices import Prices
from engine.request import GenerationOptions
from tests.deployments.plans_by_hand import (
    BLOCK,
    COST,
    DEFAULT,
    LADDER,
    MENUS,
    ask,
    clusters,
    costs,
    exactly,
    fields,
    lengths,
    plan,
    quality,
    shares,
)


@given(clusters, st.floats(1, 60_000), st.floats(1, 10), lengths, fields, shares)
def test_a_looser_slo_never_lowers_quality(
    cluster: list[ReplicaLoad], slo_ms: float, factor: float, output: Length, asked: dict[str, Any], share: float
) -> None:
    tight, loose = (plan(ms, cluster, output, share=share, **asked) for ms in (slo_ms, slo_ms * factor))
    if isinstance(tight, Planned):
        assert isinstance(loose, Planned)
        assert quality(loose) >= quality(tight)


@given(clusters, st.floats(1, 60_000) | st.none(), lengths, fields)
def test_every_plan_is_within_the_requests_own_fields(
    cluster: list[ReplicaLoad], slo_ms: float | None, output: Length, asked: dict[str, Any]
) -> None:
    answer = plan(slo_ms, cluster, output, on_infeasible="degrade", **asked)
    assert isinstance(answer, Planned)
    assert answer.replica in {load.replica for load in cluster}
    assert 1 <= len(answer.plan.ladder) <= 8
    qualities = [rung.expected_quality for rung in answer.plan.ladder]
    assert None in qualities or qualities == sorted(qualities, reverse=True)  # type: ignore[type-var]
    for rung in answer.plan.ladder:
        if rung.is_diffusion:
            assert rung.refinement_steps <= asked.get("max_refinement_steps", BLOCK)
            assert rung.refinement_steps >= asked.get("min_refinement_steps", 1)
        # Without an SLO `decoding: diffusion` pins threshold 0.9, of which nothing was measured here.
        if not rung.exact and "min_expected_quality" in asked and slo_ms is not None:
            assert rung.expected_quality is not None
            assert rung.expected_quality >= asked["min_expected_quality"]
        if asked.get("decoding") == "diffusion":
            assert rung.is_diffusion


@given(clusters, st.floats(1, 60_000), lengths, fields, shares)
def test_what_is_planned_fits_and_what_is_refused_says_what_would(
    cluster: list[ReplicaLoad], slo_ms: float, output: Length, asked: dict[str, Any], share: float
) -> None:
    answer = plan(slo_ms, cluster, output, share=share, **asked)
    if isinstance(answer, Planned):
        assert answer.plan.predicted_p95_ms is not None
        assert answer.plan.predicted_p95_ms <= slo_ms + 0.1
        assert answer.plan.slo_ms == slo_ms
        assert answer.plan.expected_tokens == output.reckoned
    else:
        assert answer.smallest_feasible_slo_ms is not None
        assert answer.smallest_feasible_slo_ms > slo_ms
        assert (answer.retry_after_s is not None) == (answer.status == 429)
        assert isinstance(plan(answer.smallest_feasible_slo_ms, cluster, output, share=share, **asked), Planned)


@given(clusters, st.floats(1, 20_000), st.floats(1, 20_000), lengths)
def test_both_bounds_are_named_one_after_the_other_until_they_fit(
    cluster: list[ReplicaLoad], slo_ms: float, ttft_ms: float, output: Length
) -> None:
    """A refusal names the bound that stands in the way; following it twice is enough."""
    bounds = {"latency_slo_ms": slo_ms, "ttft_slo_ms": ttft_ms}
    for _ in range(3):
        options = GenerationOptions(**bounds)  # type: ignore[arg-type]
        goal = goal_of(options, DEFAULT)
        answer = make_plan(ask(MENUS.menu(options, DEFAULT, False, goal), goal, 50, output), cluster)
        if isinstance(answer, Planned):
            return
        assert answer.smallest_feasible_slo_ms is not None
        assert answer.smallest_feasible_slo_ms > bounds[answer.field]
        bounds[answer.field] = answer.smallest_feasible_slo_ms
    pytest.fail(f"{bounds} were offered and are still refused")


def test_budgets_follow_the_slo() -> None:
    load = ReplicaLoad("a", cost=COST)
    loose, tight = plan(5_000, load, decoding="diffusion"), plan(330, load, decoding="diffusion")
    assert isinstance(loose, Planned)
    assert isinstance(tight, Planned)
    assert loose.plan.first.refinement_steps == 16
    assert tight.plan.first.refinement_steps == 4
    assert "4 steps" in tight.plan.reason


def test_equal_quality_starts_on_the_cheapest_and_leaves_the_choice_to_the_engine() -> None:
    answer = plan(60_000, ReplicaLoad("a"))
    assert isinstance(answer, Planned)
    assert [rung.decoding.value for rung in answer.plan.ladder[:2]] == ["ar", "self_speculation"]
    assert answer.plan.ladder[-1].refinement_steps == 1
    assert answer.plan.first.decoding is Decoding.SELF_SPECULATION


def test_no_slo_stays_on_rungs_equal_to_ar() -> None:
    answer = plan(None, ReplicaLoad("a", queue_s=100, running=50, slots=800))
    assert isinstance(answer, Planned)
    assert {rung.expected_quality for rung in answer.plan.ladder} == {0.95}
    assert answer.plan.slo_ms is None


def test_low_load_takes_self_speculation_and_high_load_what_has_the_throughput() -> None:
    """Where a forward costs the same whatever is in it, few forwards win; among many slots, few slots do."""
    idle = plan(None, ReplicaLoad("a", cost=COST))
    full = plan(None, ReplicaLoad("a", cost=COST, queue_s=60, running=64, sequences=64, slots=2000))
    assert isinstance(idle, Planned)
    assert isinstance(full, Planned)
    assert idle.plan.first.decoding is Decoding.SELF_SPECULATION
    assert full.plan.first.decoding is Decoding.AR
    assert full.plan.ladder == idle.plan.ladder, "the engine may change its mind"


def test_the_measured_rate_of_a_replica_counts() -> None:
    """A replica where drafts are mostly refused is planned for with AR."""
    slow = {str(self_speculation(8).policy()): 0.1}
    load = ReplicaLoad("a", cost=replace(COST, per_token_s=2e-3), tokens_per_forward=slow)
    answer = plan(None, load)
    assert isinstance(answer, Planned)
    assert answer.plan.first.decoding is Decoding.AR


def test_the_ladder_goes_from_the_best_in_time_to_the_fastest_allowed() -> None:
    load = ReplicaLoad("a", cost=COST)
    answer = plan(330, load, decoding="diffusion")
    assert isinstance(answer, Planned)
    assert [rung.refinement_steps for rung in answer.plan.ladder] == [4, 1]
    assert answer.plan.start == 0
    floored = plan(330, load, decoding="diffusion", min_expected_quality=0.5)
    assert isinstance(floored, Planned)
    assert [rung.refinement_steps for rung in floored.plan.ladder] == [4]


@pytest.mark.parametrize(("slo_ms", "length"), [(None, 7), (5000, 7)])
def test_a_block_length_that_no_measured_rung_has_is_said(slo_ms: float | None, length: int) -> None:
    remark = f"no measured rung that is allowed has block_length {length}: name a decoding to use it"
    unmeasured = plan(slo_ms, ReplicaLoad("a"), block_length=length)
    assert isinstance(unmeasured, Planned)
    assert unmeasured.plan.ladder == (LADDER[0],)
    assert unmeasured.plan.reason.endswith(f"; {remark}")
    for asked in ({"block_length": 8}, {"block_length": 1}, {}):
        known = plan(slo_ms, ReplicaLoad("a"), **asked)
        assert isinstance(known, Planned)
        assert "block_length" not in known.plan.reason


def test_a_reason_says_what_kept_the_better_rung_out() -> None:
    answer = plan(330, ReplicaLoad("a", cost=COST), decoding="diffusion")
    assert isinstance(answer, Planned)
    assert "diffusion over blocks of 32 with 4 steps (expected quality 0.80)" in answer.plan.reason
    assert "8 steps would need" in answer.plan.reason
    assert "latency_slo_ms" in answer.plan.reason
    assert "length: known" in answer.plan.reason


def test_a_reserved_share_is_kept_from_lighter_tiers() -> None:
    """22.5 blocks of forwards and the prompt's, 198 ms, times a margin fit 300 ms, not 70 % of them."""
    load = ReplicaLoad("a", cost=COST, latency_tail={"diffusion": 1.0}, tail_ratio=1.0)
    pinned: dict[str, Any] = {"decoding": "diffusion", "refinement_steps": 4, "output": 128}
    assert isinstance(plan(300, load, **pinned), Planned)
    refused = plan(300, load, share=0.7, **pinned)
    assert isinstance(refused, Refusal)
    assert refused.smallest_feasible_slo_ms is not None
    needed_ms = SAFETY * (23.5 * 8.2 + 5) / 0.7 + 20
    assert needed_ms <= refused.smallest_feasible_slo_ms <= 1.03 * needed_ms


@given(st.floats(10, 3000), st.booleans(), lengths, st.integers(1, 600), fields, shares, costs)
def test_an_idle_engine_admits_what_was_planned_for_it_and_what_a_refusal_names(
    slo_ms: float, first: bool, output: Length, prompt: int, asked: dict[str, Any], share: float, cost: ForwardCost
) -> None:
    """The router reckons as `engine/pace.py` does, so nobody is sent to a replica that will not have him."""
    outlook = Outlook(ForwardCostModel(prior=cost), prefill_chunk=256)
    load = ReplicaLoad("a", cost=cost, tail_ratio=1.0)

    def planned(ms: float) -> Planned | Refusal:
        name = "ttft_slo_ms" if first else "latency_slo_ms"
        options = GenerationOptions(**{name: ms}, **asked)
        goal = goal_of(options, DEFAULT, share=share)
        return make_plan(ask(MENUS.menu(options, DEFAULT, False, goal), goal, prompt, output), [load])

    answer = planned(slo_ms)
    if isinstance(answer, Refusal):
        assert answer.status == 400, "the replica is idle"
        assert answer.smallest_feasible_slo_ms is not None
        slo_ms = answer.smallest_feasible_slo_ms
        answer = planned(slo_ms)
    assert isinstance(answer, Planned)
    left_s = (slo_ms - 20) / 1e3
    newcomer = Newcomer(
        answer.plan, prompt, output.reckoned, None if first else left_s, left_s if first else None, share
    )
    assert Admission(outlook).rung_for(newcomer, outlook.company(outlook.view([], 0.0))) is not None


def test_an_idle_replica_that_is_too_slow_is_400_and_load_is_429() -> None:
    load = ReplicaLoad("a", cost=COST, running=20, sequences=20, timed_others_s=0.064, timed_s=12.0)
    hopeless, busy = plan(30, load), plan(300, load)
    assert isinstance(hopeless, Refusal)
    assert isinstance(busy, Refusal)
    assert (hopeless.status, busy.status) == (400, 429)
    assert hopeless.retry_after_s is None
    assert busy.retry_after_s == 12
    assert "latency_slo_ms is 30" in hopeless.message


def test_where_deadlines_leave_no_room_the_router_refuses_and_says_with_what_it_would_not() -> None:
    load = ReplicaLoad("a", cost=COST, running=2, sequences=2, timed_others_s=0.001, timed_s=1.0, queue_s=1.0)
    crowded = replace(load, timed_room_s=1e-5)
    assert isinstance(plan(1_000, load), Planned)
    refused = plan(1_000, crowded)
    assert isinstance(refused, Refusal)
    assert refused.status == 429
    assert refused.smallest_feasible_slo_ms is not None
    assert refused.smallest_feasible_slo_ms > 1_000
    assert isinstance(plan(refused.smallest_feasible_slo_ms, crowded), Planned)


def test_what_is_degraded_rather_than_refused_asks_for_no_room() -> None:
    load = ReplicaLoad("a", cost=COST, running=2, sequences=2, timed_others_s=0.001, timed_s=1.0, queue_s=1.0)
    free, full = (plan(1_000, one, on_infeasible="degrade") for one in (load, replace(load, timed_room_s=0.0)))
    assert isinstance(full, Planned)
    assert isinstance(free, Planned)
    assert full.plan == free.plan


riders = st.lists(st.tuples(st.integers(1, 200), st.floats(0.05, 20.0)), max_size=4)


@given(riders, costs, st.integers(1, 600), st.integers(1, 200), st.floats(0.01, 60.0))
@settings(max_examples=300)
def test_the_router_finds_no_want_of_room_where_the_replica_lets_somebody_in(
    others: list[tuple[int, float]], cost: ForwardCost, prompt: int, output: int, left_s: float
) -> None:
    outlook = Outlook(ForwardCostModel(prior=cost), prefill_chunk=256)
    ladder = [Step(0, 1.0, 0.0, 1.0, cost.own_s(1, 0)), Step(1, 5.0, 0.5, 1.0, cost.own_s(16, 0))]
    count = len(others)
    nothing, never = np.zeros(count), np.full(count, inf)
    tokens, lefts = (np.array(column, dtype=np.float64) for column in ([n for n, _ in others], [s for _, s in others]))
    places = np.zeros(count, dtype=np.int64)
    ones = np.ones(count)
    present = Riders(places, places, tokens, lefts, never, nothing, nothing, nothing, share=ones, reserve=2 * ones)
    pacing = Pacing(present, StepTable([ladder]), cost.base_s)
    curve = Curve(pacing.changes())
    forward_s = curve.rest_s(cost.base_s)
    prices = Prices(lambda ladder: outlook.worth(ladder, Crowd(count + 1, 0.0)), 0.0)
    company = Company(curve, forward_s, longest_s([pacing], forward_s), cost.base_s, prices)
    newcomer = Newcomer(Plan(ladder=(AR,)), prompt, output, left_s)
    if Admission(outlook).rung_for(newcomer, company) is None:
        return
    free = ReplicaLoad("a", cost=cost, timed_others_s=forward_s - cost.base_s)
    crowded = replace(free, timed_room_s=company.room_s)
    kept_s = [
        predict_all(RungTable((AR,)), LoadTable([load], True, True), prompt, [0], [output], [output]).kept_s.item(1)
        for load in (free, crowded)
    ]
    assert kept_s[1] <= max(kept_s[0], left_s * (1 + 1e-6))


def test_work_without_a_deadline_makes_room_for_one() -> None:
    patient = ReplicaLoad("a", cost=COST, running=20, sequences=20, slots=640, queue_s=12.0)
    answer = plan(2_000, patient)
    assert isinstance(answer, Planned)
    assert answer.plan.predicted_p95_ms is not None
    # It is let ride along as far as the deadline allows, so the answer is not expected as from an idle replica.
    idle = plan(2_000, ReplicaLoad("a", cost=COST))
    assert isinstance(idle, Planned)
    assert idle.plan.predicted_p95_ms is not None
    assert idle.plan.predicted_p95_ms < answer.plan.predicted_p95_ms <= 2_000


def test_nothing_serves_is_503_with_retry_after() -> None:
    answer = plan(None, [])
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


def test_replicas_are_ranked_by_predicted_finish() -> None:
    """Not by queue: a short queue of wide canvases on a slow machine ends later than a longer one on a fast machine."""
    slow = ReplicaLoad("slow", cost=replace(COST, base_s=20e-3), queue_s=0.1, slots=10)
    fast = ReplicaLoad("fast", cost=COST, queue_s=0.2, slots=10)
    idle = ReplicaLoad("idle", cost=COST)
    answer = plan(9_000, [slow, fast, idle])
    assert isinstance(answer, Planned)
    assert answer.ranked == ("idle", "fast", "slow")


def test_a_replica_that_has_the_prefix_goes_first() -> None:
    options = GenerationOptions()
    goal = goal_of(options, DEFAULT)
    menu = MENUS.menu(options, DEFAULT, False, goal)
    cluster = [ReplicaLoad("a", cost=COST), ReplicaLoad("b", cost=COST, queue_s=0.01, slots=8)]
    cold = make_plan(ask(menu, goal, 1000, exactly(20)), cluster)
    warm = make_plan(ask(menu, goal, 1000, exactly(20), cached={"b": 960}), cluster)
    assert isinstance(cold, Planned)
    assert isinstance(warm, Planned)
    assert (cold.replica, warm.replica) == ("a", "b")
    assert warm.cached == 960


def test_experience_corrects_what_is_promised_and_not_what_is_feasible() -> None:
    options = GenerationOptions(latency_slo_ms=330, decoding="diffusion")
    goal = goal_of(options, DEFAULT)
    menu = MENUS.menu(options, DEFAULT, False, goal)
    plain, corrected = (
        make_plan(ask(menu, goal, 50, exactly(100), scales=scales), [ReplicaLoad("a", cost=COST)])
        for scales in ({}, {"diffusion": 0.8})
    )
    assert isinstance(plain, Planned)
    assert isinstance(corrected, Planned)
    assert corrected.plan.ladder == plain.plan.ladder
    assert corrected.prediction.p95_s == pytest.approx(0.8 * plain.prediction.p95_s)


def test_a_time_to_first_text_alone_picks_what_starts_early() -> None:
    options = GenerationOptions(ttft_slo_ms=80)
    goal = goal_of(options, DEFAULT)
    answer = make_plan(ask(MENUS.menu(options, DEFAULT, False, goal), goal, 20, exactly(200)), [ReplicaLoad("a")])
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


@pytest.mark.parametrize("bound", ["latency_slo_ms", "ttft_slo_ms"])
def test_what_is_late_anyway_goes_alone_on_the_rung_that_is_fastest_by_its_own_bound(bound: str) -> None:
    """AR speaks first, one step of diffusion ends first."""
    loads = [ReplicaLoad("a", cost=COST, queue_s=3.0, running=8, sequences=8, slots=64), ReplicaLoad("b", cost=COST)]
    options = GenerationOptions(**{bound: 1.0}, on_infeasible="degrade")
    goal = goal_of(options, DEFAULT)
    asked = ask(MENUS.menu(options, DEFAULT, False, goal), goal, 50, exactly(200))
    predictions, _ = predictions_at(asked, loads)
    late_s = predictions.p95_s if bound == "latency_slo_ms" else predictions.first_text_p95_s
    answer = make_plan(asked, loads)
    assert isinstance(answer, Planned)
    assert answer.plan.ladder == (asked.menu.rungs[int(late_s.min(axis=1).argmin())],)
    assert answer.plan.first.is_diffusion == (bound == "latency_slo_ms")


def test_among_patient_work_an_answer_is_expected_by_its_deadline_less_what_is_not_the_engines() -> None:
    answer = plan(2_000, ReplicaLoad("a", cost=COST, running=20, sequences=20, slots=640, queue_s=12.0))
    assert isinstance(answer, Planned)
    assert answer.plan.predicted_p95_ms == pytest.approx((2_000 - 20) / SAFETY + 20, abs=0.1)
