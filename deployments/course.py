"""What happened to an answer on its way, and the `stepdial` object that tells of it (`requests.md` section 6)."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from deployments.reason import moved_reason
from deployments.reported_plan import rungs_used
from engine.events import Spent

if TYPE_CHECKING:
    from deployments.goal import Goal
    from deployments.job import Job
    from deployments.planning import Planning
    from engine.plan import Plan


@dataclass(slots=True)
class Course:
    """Attributes:
    first_text_s: from arrival to the first text; None before.
    base: output tokens that were there when it last went on at another replica.
    failures, moves: replicas that died under it, and that it left for one with less to do.
    replans: refusals of replicas that its plan was for.
    spent: at the replicas before the last one, up to the last text from there.
    """

    first_text_s: float | None = None
    base: int = 0
    failures: int = 0
    moves: int = 0
    replans: int = 0
    spent: Spent = field(default_factory=Spent)


def stepdial_object(
    planning: Planning,
    job: Job,
    plan: Plan | None,
    course: Course,
    report: dict[str, Any],
    completion_tokens: int,
    cut: bool,
) -> dict[str, Any]:
    """The last engine's report, and what the router knows. `cut`: at the deadline."""
    latency_ms = (time.perf_counter() - job.arrived_s) * 1e3
    first_text_s = course.first_text_s
    return {
        **report,
        **_spent_in_all(course, report, completion_tokens),
        "tier": job.tier.name,
        "seed": job.fields["seed"],
        "slo_ms": job.goal.latency_slo_ms,
        "ttft_slo_ms": job.goal.ttft_slo_ms,
        "predicted_p95_ms": None if plan is None else plan.predicted_p95_ms,
        "expected_quality": _delivered_quality(planning, job, plan, course, report),
        "ttft_ms": None if first_text_s is None else round(first_text_s * 1e3, 2),
        "latency_ms": round(latency_ms, 2),
        "slo_met": _slo_met(job.goal, latency_ms, first_text_s),
        "reason": _reason(plan, course, report, cut),
    }


def _spent_in_all(course: Course, report: dict[str, Any], completion_tokens: int) -> dict[str, Any]:
    """Of an answer that went on elsewhere, what all replicas spent on it."""
    if not any(course.spent):
        return {}
    last = Spent(**{name: report[name] for name in Spent._fields if name in report})
    whole = course.spent.and_then(last)
    return {**whole._asdict(), "tokens_per_forward": completion_tokens / whole.forwards if whole.forwards else None}


def _reason(plan: Plan | None, course: Course, report: dict[str, Any], cut: bool) -> str:
    reason = "" if plan is None else plan.reason
    if plan is not None and not plan.pinned:
        reason += moved_reason(plan.first, rungs_used(report.get("plan", ())))
    if cut:
        reason += "; cut at the deadline"
    if course.replans:
        reason += f"; planned again after a replica refused {_times(course.replans)}"
    if course.failures:
        reason += f"; a replica failed {_times(course.failures)}"
    if course.moves:
        reason += f"; moved to a replica with less to do {_times(course.moves)}"
    if course.failures or course.moves:
        reason += f"; continued after {course.base} tokens"
    return reason


def _times(count: int) -> str:
    return "once" if count == 1 else f"{count} times"


def _delivered_quality(
    planning: Planning, job: Job, plan: Plan | None, course: Course, report: dict[str, Any]
) -> float | None:
    """Expected quality of the rungs that made the answer, of all that its plan allowed where it went on elsewhere."""
    temperature = job.options.temperature
    entries = report.get("plan", ())
    if entries and not course.base:
        return planning.answer_quality(entries, temperature)
    if plan is None:
        return None
    entries = [{"from_token": place, **rung.to_dict()} for place, rung in enumerate(plan.ladder)]
    return planning.answer_quality(entries, temperature)


def _slo_met(goal: Goal, latency_ms: float, first_text_s: float | None) -> bool | None:
    if not goal.bounded:
        return None
    in_time = goal.latency_slo_ms is None or latency_ms <= goal.latency_slo_ms
    return in_time and (
        goal.ttft_slo_ms is None or (first_text_s is not None and first_text_s * 1e3 <= goal.ttft_slo_ms)
    )
