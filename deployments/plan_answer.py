"""`POST /v1/plan`: the menu of a request without running it, and what would be chosen now. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deployments.goal import goal_excess_ms
from deployments.planner import REFUSAL_MARGIN, Ask, Candidate, Planned, Refusal, candidate
from deployments.prediction import LoadView
from deployments.reason import name_of
from engine.plan import PlanEntry

if TYPE_CHECKING:
    from deployments.job import Job
    from deployments.load import ReplicaLoad


def plan_answer(job: Job, ask: Ask, outcome: Planned | Refusal, loads: Sequence[ReplicaLoad]) -> dict[str, Any]:
    """The answer's body.

    Args:
        ask: what was planned. outcome: what came of it. loads: one per replica.
    """
    views = [LoadView(load, timed=ask.goal.bounded) for load in loads]
    table = [[candidate(ask, index, view) for view in views] for index in range(len(ask.menu.rungs))]
    goal = ask.goal
    return {
        "object": "stepdial.plan",
        "tier": job.tier.name,
        "weight": job.weight,
        "slo_ms": goal.latency_slo_ms,
        "ttft_slo_ms": goal.ttft_slo_ms,
        "on_infeasible": goal.on_infeasible,
        "capacity_share": goal.share,
        "prompt_tokens": len(job.prompt),
        "output_tokens": {
            "expected": job.length.median, "reckoned": job.length.reckoned, "source": job.length.source,
        },
        "rungs": [_row(ask, index, row) for index, row in enumerate(table)],
        "chosen": _chosen(ask, outcome) if isinstance(outcome, Planned) else None,
        "refused": _refused(outcome) if isinstance(outcome, Refusal) else None,
        "replicas": [
            {
                "replica": view.load.replica,
                "queue_s": round(view.queue_s, 4),
                "sequences": view.load.sequences,
                "cached_tokens": ask.cached.get(view.load.replica, 0),
                "predicted_p95_ms": [_total_ms(ask, row[place]) for row in table],
            }
            for place, view in enumerate(views)
        ],
    }  # fmt: skip


def _row(ask: Ask, index: int, row: Sequence[Candidate]) -> dict[str, Any]:
    """One rung, at the replica where it would be finished first; without replicas nothing is predicted."""
    rung, length = ask.menu.rungs[index], ask.lengths[index]
    shown = PlanEntry(0, rung).to_dict()
    del shown["from_token"]
    best = min(row, key=lambda one: one.prediction.p95_s, default=None)
    said: dict[str, Any] = {
        "rung": name_of(rung),
        **shown,
        "expected_quality": ask.qualities[index],
        "output_tokens": {"expected": length.median, "reckoned": length.reckoned, "source": length.source},
        "predicted_p50_ms": None,
        "predicted_p95_ms": None,
        "predicted_ttft_p95_ms": None,
        "accelerator_ms": None,
        "smallest_feasible_slo_ms": None,
        "meets_slo": False,
        "replica": None,
    }
    if best is None:
        return said
    goal, prediction = ask.goal, best.prediction
    return {
        **said,
        "predicted_p50_ms": round(prediction.p50_s * 1e3 + ask.extra_ms, 1),
        "predicted_p95_ms": _total_ms(ask, best),
        "predicted_ttft_p95_ms": round(prediction.first_text_p95_s * 1e3 + ask.extra_ms, 1),
        "accelerator_ms": round(prediction.accelerator_s * 1e3, 2),
        "smallest_feasible_slo_ms": math.ceil((goal.latency_ms(prediction) + ask.extra_ms) * REFUSAL_MARGIN),
        "meets_slo": any(goal_excess_ms(one.prediction, goal, ask.extra_ms) <= 0 for one in row),
        "replica": best.view.load.replica,
    }


def _total_ms(ask: Ask, one: Candidate) -> float:
    return round(one.prediction.p95_s * 1e3 + ask.extra_ms, 1)


def _chosen(ask: Ask, planned: Planned) -> dict[str, Any]:
    plan = planned.plan
    return {
        "rung": ask.menu.rungs.index(plan.ladder[plan.start]),
        "ladder": [ask.menu.rungs.index(rung) for rung in plan.ladder],
        "plan": [PlanEntry(at, rung).to_dict() for at, rung in plan.schedule or ((0, plan.first),)],
        "replica": planned.replica,
        "next_replicas": list(planned.ranked[1:]),
        "predicted_p95_ms": plan.predicted_p95_ms,
        "reason": plan.reason,
    }


def _refused(refusal: Refusal) -> dict[str, Any]:
    return {
        "status": refusal.status,
        "message": refusal.message,
        "param": None if refusal.status == 503 else refusal.field,
        "smallest_feasible_slo_ms": refusal.smallest_feasible_slo_ms,
        "retry_after_s": refusal.retry_after_s,
    }
