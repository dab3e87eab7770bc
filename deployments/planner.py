"""From a request, a tier, loads and a quality map to a plan or a refusal: pure functions (`requests.md` sections 4, 5).

The chosen plan has the highest expected quality whose predicted p95 meets the SLO; at equal quality the cheapest rung
leads, and the engine may use any of the equals.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from deployments.prediction import Prediction, Size, predict
from deployments.quality import budgets_for
from engine.plan import Plan, Rung
from engine.request import allowed_rungs, equivalent_to_ar, pinned_rung, resolve_plan

if TYPE_CHECKING:
    from deployments.load import ReplicaLoad
    from deployments.quality import QualityMap
    from deployments.tiers import Tier
    from engine.request import GenerationOptions

REFUSAL_MARGIN = 1.02
"""What `smallest_feasible_slo_ms` adds, so that asking again with it is accepted."""
SAME_QUALITY = 1e-6


@dataclass(frozen=True, slots=True)
class Goal:
    """What a request's time may be, milliseconds from its arrival. None = no bound.

    Attributes:
        latency_slo_ms, ttft_slo_ms: the request's own, else its tier's.
        stated: whether the request itself named one.
        on_infeasible: what to do when no rung is fast enough.
    """

    latency_slo_ms: float | None
    ttft_slo_ms: float | None
    stated: bool
    on_infeasible: Literal["reject", "degrade"]

    @property
    def bounded(self) -> bool:
        return self.latency_slo_ms is not None or self.ttft_slo_ms is not None


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the replica that it was made for."""

    plan: Plan
    replica: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why nothing was spent on a request.

    Attributes:
        status: 400 when even an idle replica could not, 429 when the load forbids it, 503 when nothing serves.
        smallest_feasible_slo_ms: what would be accepted now. retry_after_s: when the request itself may be.
    """

    status: Literal[400, 429, 503]
    message: str
    smallest_feasible_slo_ms: float | None = None
    retry_after_s: int | None = None
    field: str = "latency_slo_ms"


def goal_of(options: GenerationOptions, tier: Tier) -> Goal:
    """The bounds of a request: its own fields before those of its tier."""
    own = options.latency_slo_ms is not None or options.ttft_slo_ms is not None
    latency = options.latency_slo_ms if own else tier.latency_slo_ms
    first = options.ttft_slo_ms if own else tier.ttft_slo_ms
    if own and latency is None:
        latency = tier.latency_slo_ms
    fallback = "reject" if own else tier.on_infeasible
    return Goal(latency, first, own, options.on_infeasible or fallback)


def rungs_for(
    options: GenerationOptions, tier: Tier, tier_named: bool, goal: Goal, quality: QualityMap, block_size: int
) -> tuple[Rung, ...]:
    """The rungs that a request may be given, best first: its pin, or what its fields, SLO and tier leave open."""
    timed = options.model_copy(update={"latency_slo_ms": goal.latency_slo_ms, "ttft_slo_ms": goal.ttft_slo_ms})
    pinned = pinned_rung(timed, block_size)
    if pinned is not None:
        return (quality.described(pinned),)
    if options.decoding == "diffusion":
        rungs = allowed_rungs(options, quality.diffusion)
        if not rungs and options.block_length is not None:
            rungs = allowed_rungs(options, budgets_for(options.block_length))
        return rungs or resolve_plan(options, block_size, ()).ladder
    lossy = goal.bounded and (tier.lossy or (goal.stated and not tier_named))
    ladder = quality.ladder if lossy else equivalent_to_ar(quality.ladder)
    rungs = allowed_rungs(options, ladder)
    floor = tier.min_expected_quality if options.min_expected_quality is None else None
    if floor is not None:
        rungs = tuple(
            rung
            for rung in rungs
            if rung.exact or (rung.expected_quality is not None and rung.expected_quality >= floor)
        )
    return rungs or resolve_plan(options, block_size, quality.ladder).ladder


def make_plan(
    rungs: Sequence[Rung],
    goal: Goal,
    size: Size,
    loads: Sequence[ReplicaLoad],
    overhead_ms: float,
    elapsed_ms: float = 0.0,
    idle_overhead_ms: float | None = None,
) -> Planned | Refusal:
    """Chooses rung and replica.

    Args:
        rungs: best first. loads: one per replica that may be used; none = 503.
        overhead_ms: p95 of what the HTTP path adds to the engine's time. elapsed_ms: already gone since arrival.
        idle_overhead_ms: what the HTTP path adds when nothing else is going on; decides whether a refusal is for good.
    """
    if not loads:
        return Refusal(503, "no replica is ready; try again later", None, 5)
    load = min(loads, key=lambda item: item.queue_s)
    extra_ms = overhead_ms + elapsed_ms
    predictions = [predict(rung, size, load) for rung in rungs]
    in_time = [index for index, prediction in enumerate(predictions) if goal_excess_ms(prediction, goal, extra_ms) <= 0]
    if not in_time and goal.on_infeasible == "reject":
        idle_ms = overhead_ms if idle_overhead_ms is None else min(idle_overhead_ms, extra_ms)
        return refuse(rungs, goal, size, load, predictions, extra_ms, idle_ms)
    if not goal.bounded:
        chosen, lead = in_time, min(in_time, key=lambda index: predictions[index].p95_s)
    elif in_time:
        chosen, lead = _best(rungs, predictions, in_time)
    else:
        lead = min(range(len(rungs)), key=lambda index: predictions[index].p95_s)
        chosen = [lead]
    ladder = tuple(rungs[index] for index in chosen)
    predicted_ms = max(predictions[index].p95_s for index in chosen) * 1e3 + extra_ms
    rung = rungs[lead]
    plan = Plan(
        ladder=ladder,
        start=chosen.index(lead),
        predicted_p95_ms=round(predicted_ms, 1),
        slo_ms=goal.latency_slo_ms,
        reason=_reason(rung, ladder, rungs, goal, predicted_ms, bool(in_time)),
    )
    return Planned(plan, load.replica)


def refuse(
    rungs: Sequence[Rung],
    goal: Goal,
    size: Size,
    load: ReplicaLoad,
    predictions: Sequence[Prediction],
    extra_ms: float,
    idle_extra_ms: float,
) -> Refusal:
    """400 when an idle replica could not do it either, else 429 with the time until it could."""
    idle = [predict(rung, size, load.idle()) for rung in rungs]
    feasible_idle = any(goal_excess_ms(prediction, goal, idle_extra_ms) <= 0 for prediction in idle)
    by_ttft = goal.latency_slo_ms is None
    fastest_s = min(prediction.first_text_p95_s if by_ttft else prediction.p95_s for prediction in predictions)
    smallest = math.ceil((fastest_s * 1e3 + extra_ms) * REFUSAL_MARGIN)
    field = "ttft_slo_ms" if by_ttft else "latency_slo_ms"
    asked = goal.ttft_slo_ms if by_ttft else goal.latency_slo_ms
    if not feasible_idle:
        message = f"{field} is {asked:g}, which not even an idle replica could meet; allowed: at least {smallest}"
        return Refusal(400, message, smallest, None, field)
    wait_s = max(1, math.ceil(load.queue_s))
    message = f"{field} {asked:g} cannot be met under the present load; it could with at least {smallest} ms, or later"
    return Refusal(429, message, smallest, wait_s, field)


def goal_excess_ms(prediction: Prediction, goal: Goal, extra_ms: float) -> float:
    """By how much a prediction misses the tighter of its bounds; at most 0 when both are met."""
    excess = -math.inf
    if goal.latency_slo_ms is not None:
        excess = prediction.p95_s * 1e3 + extra_ms - goal.latency_slo_ms
    if goal.ttft_slo_ms is not None:
        excess = max(excess, prediction.first_text_p95_s * 1e3 + extra_ms - goal.ttft_slo_ms)
    return excess


def _best(rungs: Sequence[Rung], predictions: Sequence[Prediction], in_time: Sequence[int]) -> tuple[list[int], int]:
    """Indices of the best rungs that are in time (equals in quality), and the cheapest of them."""
    qualities = [rungs[index].expected_quality for index in in_time]
    top = in_time[0]
    if all(quality is not None for quality in qualities):
        best = max(quality for quality in qualities if quality is not None)
        equals = [index for index in in_time if (rungs[index].expected_quality or 0.0) >= best - SAME_QUALITY]
    elif rungs[top].exact:
        equals = [index for index in in_time if rungs[index].exact]
    else:
        equals = [top]
    return equals, min(equals, key=lambda index: predictions[index].p95_s)


def name_of(rung: Rung) -> str:
    """A rung in words."""
    if rung.decoding.value == "ar":
        return "AR"
    if not rung.is_diffusion:
        return f"self-speculation over blocks of {rung.block_length}"
    early = "" if rung.threshold is None else f", threshold {rung.threshold:g}"
    steps = "1 step" if rung.refinement_steps == 1 else f"{rung.refinement_steps} steps"
    return f"diffusion over blocks of {rung.block_length} with {steps}{early}"


def _reason(
    rung: Rung, ladder: Sequence[Rung], rungs: Sequence[Rung], goal: Goal, predicted_ms: float, in_time: bool
) -> str:
    what = name_of(rung)
    slo = goal.latency_slo_ms if goal.latency_slo_ms is not None else goal.ttft_slo_ms
    if not in_time:
        return (
            f"{what}, the fastest allowed: predicted p95 {predicted_ms:.0f} ms, so no rung meets the SLO of {slo:g} ms"
        )
    if not goal.bounded:
        if len(rungs) == 1:
            return f"{what}, pinned by the request"
        return f"{len(ladder)} rungs of equal quality, the engine follows the load; no SLO was stated"
    if len(rungs) == 1:
        return f"{what}, pinned by the request; predicted p95 {predicted_ms:.0f} ms within {slo:g} ms"
    others = f" (or {len(ladder) - 1} more of equal quality)" if len(ladder) > 1 else ""
    return f"{what}{others} is the best quality whose predicted p95 of {predicted_ms:.0f} ms meets {slo:g} ms"
