"""`POST /v1/plan`: the menu of a request without running it, and what would be chosen now. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from deployments.planner import REFUSAL_MARGIN, Ask, Planned, Refusal, predictions_at
from deployments.reason import name_of
from engine.plan import PlanEntry

if TYPE_CHECKING:
    from deployments.job import Job
    from deployments.load import ReplicaLoad
    from deployments.prediction import Predictions


def plan_answer(job: Job, ask: Ask, outcome: Planned | Refusal, loads: Sequence[ReplicaLoad]) -> dict[str, Any]:
    """The answer's body.

    Args:
        ask: what was planned. outcome: what came of it. loads: one per replica.
    """
    goal = ask.goal
    predictions = predictions_at(ask, loads)[0] if loads else None
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
        "rungs": [_row(ask, index, predictions, loads) for index in range(len(ask.menu.rungs))],
        "chosen": _chosen(ask, outcome) if isinstance(outcome, Planned) else None,
        "refused": _refused(outcome) if isinstance(outcome, Refusal) else None,
        "replicas": [
            {
                "replica": load.replica,
                "queue_s": round(load.timed_s if goal.bounded else load.queue_s, 4),
                "sequences": load.sequences,
                "cached_tokens": ask.cached.get(load.replica, 0),
                "predicted_p95_ms": [
                    _total_ms(ask, predictions.at(index, place).p95_s) for index in range(len(ask.menu.rungs))
                ],
            }
            for place, load in enumerate(loads)
            if predictions is not None
        ],
    }  # fmt: skip


def _row(ask: Ask, index: int, predictions: Predictions | None, loads: Sequence[ReplicaLoad]) -> dict[str, Any]:
    """One rung, at the replica where it would be finished first; without replicas nothing is predicted."""
    rung, length = ask.menu.rungs[index], ask.lengths[index]
    shown = PlanEntry(0, rung).to_dict()
    del shown["from_token"]
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
    if predictions is None:
        return said
    goal, place = ask.goal, int(predictions.p95_s[index].argmin())
    prediction = predictions.at(index, place)
    smallest_ms = goal.latency_ms(predictions).item(index, place) + ask.extra_ms
    return {
        **said,
        "predicted_p50_ms": round(prediction.p50_s * 1e3 + ask.extra_ms, 1),
        "predicted_p95_ms": _total_ms(ask, prediction.p95_s),
        "predicted_ttft_p95_ms": round(prediction.first_text_p95_s * 1e3 + ask.extra_ms, 1),
        "accelerator_ms": round(prediction.accelerator_s * 1e3, 2),
        "smallest_feasible_slo_ms": math.ceil(smallest_ms * REFUSAL_MARGIN),
        "meets_slo": bool((goal.excess_ms(predictions, ask.extra_ms)[index] <= 0).any()),
        "replica": loads[place].replica,
    }


def _total_ms(ask: Ask, seconds: float) -> float:
    return round(seconds * 1e3 + ask.extra_ms, 1)


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
