"""What `POST /v1/plan` shows of a request's menu."""

from __future__ import annotations

from dataclasses import replace

import pytest

from deployments.goal import goal_of
from deployments.job import Job
from deployments.load import ReplicaLoad
from deployments.plan_answer import plan_answer
from deployments.planner import REFUSAL_MARGIN, Planned, make_plan, predictions_at
from engine.request import GenerationOptions
from tests.deployments.plans_by_hand import COST, DEFAULT, MENUS, ask, exactly


def test_the_menu_that_is_shown_says_of_each_rung_what_a_plan_on_it_would() -> None:
    """`POST /v1/plan`: times are of the whole answer, the router's part in them."""
    loads = [ReplicaLoad("a", cost=COST), ReplicaLoad("b", cost=replace(COST, base_s=9e-3))]
    options = GenerationOptions(latency_slo_ms=900.0)
    goal = goal_of(options, DEFAULT)
    asked = ask(MENUS.menu(options, DEFAULT, False, goal), goal, 50, exactly(100), cached={"b": 32})
    planned = make_plan(asked, loads)
    assert isinstance(planned, Planned)
    job = Job("one", [7] * 50, options, {}, DEFAULT, 1.0, goal, asked.menu, None, 0.0, exactly(100))
    shown = plan_answer(job, asked, planned, loads)
    assert [one["cached_tokens"] for one in shown["replicas"]] == [0, 32]
    chosen = shown["chosen"]
    assert asked.menu.rungs[chosen["rung"]] == planned.plan.first
    assert shown["rungs"][chosen["rung"]]["predicted_p95_ms"] == planned.plan.predicted_p95_ms
    predictions, _ = predictions_at(asked, loads)
    for index, row in enumerate(shown["rungs"]):
        best_s = predictions.p95_s[index].min()
        assert row["predicted_p95_ms"] == pytest.approx(best_s * 1e3 + 20, abs=0.06)
        assert row["meets_slo"] == (row["smallest_feasible_slo_ms"] <= 900 * REFUSAL_MARGIN)
        assert [one["predicted_p95_ms"][index] for one in shown["replicas"]] == pytest.approx(
            (predictions.p95_s[index] * 1e3 + 20).tolist(), abs=0.06
        )
