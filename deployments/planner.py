"""From a request, loads and a menu of rungs to a plan or a refusal: pure functions (`requests.md` sections 4, 5).

The chosen plan starts on the rung of highest expected quality whose predicted p95 meets the SLO on some replica; at
equal quality on the cheapest, by the share of the accelerator that it takes there under the present load. Its ladder
goes from that quality down to the fastest rung that the request may use, and the engine moves inside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from deployments.goal import Goal, goal_excess_ms
from deployments.menu import MOST_RUNGS, Menu, thinned
from deployments.prediction import LoadView, Prediction, predict_on
from deployments.reason import plan_reason
from engine.pace import SAFETY
from engine.plan import Plan, Rung

if TYPE_CHECKING:
    from deployments.history import Length
    from deployments.load import ReplicaLoad

REFUSAL_MARGIN = 1.02
"""What `smallest_feasible_slo_ms` adds, so that asking again with it is accepted."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be planned: everything about a request that planning needs, and what lies around the engine.

    Attributes:
        lengths: output tokens to expect, one per rung of the menu.
        qualities: to promise at the request's temperature, one per rung of the menu; None outside the calibrated range.
        extra_ms: p95 of what the HTTP path adds, and what has passed since arrival.
        idle_extra_ms: what the HTTP path adds when nothing else goes on; decides whether a refusal is for good.
        cached: tokens of the prompt that a replica has in its shared pages, by replica.
        scales: what predictions of a mode have to be multiplied with, from experience.
        weight: of the request's tier.
    """

    menu: Menu
    goal: Goal
    prompt_tokens: int
    lengths: tuple[Length, ...]
    qualities: tuple[float | None, ...]
    extra_ms: float
    idle_extra_ms: float
    cached: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the replicas that it may go to: by predicted finish, the one it was made for first.

    Attributes:
        prediction: of its first rung there, seconds in the engine, experience applied.
        length: what it reckons with. cached: prompt tokens that the replica is taken to have.
    """

    plan: Plan
    ranked: tuple[str, ...]
    prediction: Prediction
    length: Length
    cached: int = 0

    @property
    def replica(self) -> str:
        return self.ranked[0]


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


class Candidate(NamedTuple):
    """A rung (its place in the menu) at a replica, with what is predicted of it there."""

    place: int
    view: LoadView
    prediction: Prediction


def make_plan(ask: Ask, loads: Sequence[ReplicaLoad]) -> Planned | Refusal:
    """Chooses rung and replica. `loads`: one per replica that may be used; none = 503."""
    if not loads:
        return nothing_serves()
    goal, extra_ms = ask.goal, ask.extra_ms
    views = [LoadView(load, timed=goal.bounded) for load in loads]
    seen: list[Candidate] = []
    for group in ask.menu.groups:
        candidates = [candidate(ask, index, view) for view in views for index in group]
        in_time = [one for one in candidates if goal_excess_ms(one.prediction, goal, extra_ms) <= 0]
        seen += candidates
        if in_time:
            return _planned(ask, in_time, seen, True)
    if goal.on_infeasible == "reject":
        return refuse(ask, views, seen)
    by_total = goal.latency_slo_ms is not None
    fastest = min(seen, key=lambda one: one.prediction.p95_s if by_total else one.prediction.first_text_p95_s)
    return _planned(ask, [one for one in seen if one.place == fastest.place], seen, False)


def nothing_serves() -> Refusal:
    return Refusal(503, "no replica is ready; try again later", None, 5)


def candidate(ask: Ask, index: int, view: LoadView) -> Candidate:
    """What is predicted of one rung at one replica; experience applied where it is no question of a deadline."""
    shape, length = ask.menu.shapes[index], ask.lengths[index]
    cached = ask.cached.get(view.load.replica, 0) if ask.cached else 0
    prediction = predict_on(view, shape, ask.prompt_tokens, cached, length.median, length.reckoned)
    scale = 1.0 if ask.goal.bounded or not ask.scales else ask.scales.get(shape.mode, 1.0)
    if scale != 1.0:
        prediction = prediction._replace(
            p95_s=prediction.p95_s * scale, first_text_p95_s=prediction.first_text_p95_s * scale
        )
    return Candidate(index, view, prediction)


def _planned(ask: Ask, usable: Sequence[Candidate], seen: Sequence[Candidate], in_time: bool) -> Planned:
    """The plan among candidates of one quality: the cheapest rung of each replica, where that is finished first."""
    lead_at: dict[str, Candidate] = {}
    for one in usable:
        name = one.view.load.replica
        if name not in lead_at or one.prediction.accelerator_s < lead_at[name].prediction.accelerator_s:
            lead_at[name] = one
    ranked = sorted(lead_at.values(), key=lambda one: (expected(ask, one).p95_s, one.view.load.queue_s))
    lead = ranked[0]
    here = lead.view.load.replica
    ladder, start = ladder_from(ask.menu, lead.place, in_time)
    length = ask.lengths[lead.place]
    prediction = expected(ask, lead)
    predicted_ms = prediction.p95_s * 1e3 + ask.extra_ms
    plan = Plan(
        ladder=ladder,
        start=start,
        predicted_p95_ms=round(predicted_ms, 1),
        slo_ms=ask.goal.latency_slo_ms,
        expected_tokens=length.reckoned,
        weight=ask.weight,
        reason=plan_reason(ask, lead, seen, ladder, predicted_ms, in_time),
    )
    cached = ask.cached.get(here, 0)
    return Planned(plan, tuple(one.view.load.replica for one in ranked), prediction, length, cached)


def expected(ask: Ask, lead: Candidate) -> Prediction:
    """How long the lead will take: with everybody there, as far as the engine lets them ride along.

    What has no deadline fills forwards only up to what the request's own allows (`engine/pace.py`).
    """
    slo_ms = ask.goal.latency_slo_ms
    if slo_ms is None:
        return lead.prediction
    room_s = max(0.0, slo_ms - ask.extra_ms) / 1e3 / SAFETY
    crowded = candidate(ask, lead.place, LoadView(lead.view.load)).prediction
    alone = lead.prediction
    p50_s = max(alone.p50_s, min(crowded.p50_s, room_s))
    scale = ask.scales.get(ask.menu.shapes[lead.place].mode, 1.0) if ask.scales else 1.0
    return alone._replace(p50_s=p50_s, p95_s=max(alone.p95_s, min(crowded.p95_s, room_s)) * scale)


def ladder_from(menu: Menu, lead: int, in_time: bool) -> tuple[tuple[Rung, ...], int]:
    """The rungs that the engine may use, and the place of the lead among them.

    From the lead's quality (its equals included) down to the end of the menu; a request that is late anyway gets the
    lead alone. At most eight: the lead and its equals go before what lies between them and the fastest.
    """
    if not in_time or menu.pinned:
        return (menu.rungs[lead],), 0
    group = next(group for group in menu.groups if lead in group)
    equals = [lead, *(index for index in group if index != lead)][: MOST_RUNGS - 1]
    top = sorted(equals)
    below = list(range(group[-1] + 1, len(menu.rungs)))
    room = MOST_RUNGS - len(top)
    rest = thinned([menu.rungs[index] for index in below], room) if room > 1 else tuple(
        menu.rungs[index] for index in below[-1:]
    )  # fmt: skip
    return (*(menu.rungs[index] for index in top), *rest), top.index(lead)


def refuse(ask: Ask, views: Sequence[LoadView], seen: Sequence[Candidate]) -> Refusal:
    """400 when an idle replica could not do it either, else 429 with the time until it could.

    Args:
        seen: all candidates, none of them in time.
    """
    goal = ask.goal
    field, smallest = smallest_feasible(ask, seen)
    asked = goal.ttft_slo_ms if field == "ttft_slo_ms" else goal.latency_slo_ms
    idle = [LoadView(view.load.idle()) for view in views]
    fresh = replace(ask, scales={})
    feasible_idle = any(
        goal_excess_ms(candidate(fresh, index, view).prediction, goal, ask.idle_extra_ms) <= 0
        for view in idle
        for index in range(len(ask.menu.rungs))
    )
    if not feasible_idle:
        message = f"{field} is {asked:g}, which not even an idle replica could meet; allowed: at least {smallest}"
        return Refusal(400, message, smallest, None, field)
    wait_s = max(1, math.ceil(min(view.queue_s for view in views)))
    message = (
        f"{field} is {asked:g}, which cannot be met under the present load; allowed now: at least {smallest}, or later"
    )
    return Refusal(429, message, smallest, wait_s, field)


def smallest_feasible(ask: Ask, seen: Sequence[Candidate]) -> tuple[str, int]:
    """The bound that stands in the way, and the least that it would have to be, milliseconds."""
    goal, extra_ms = ask.goal, ask.extra_ms

    def first_ms(one: Candidate) -> float:
        return goal.first_text_ms(one.prediction) + extra_ms

    def total_ms(one: Candidate) -> float:
        return goal.latency_ms(one.prediction) + extra_ms

    first_slo, slo = goal.ttft_slo_ms, goal.latency_slo_ms
    finish_in_time = [one for one in seen if slo is None or total_ms(one) <= slo]
    if first_slo is not None and finish_in_time:
        return "ttft_slo_ms", math.ceil(min(map(first_ms, finish_in_time)) * REFUSAL_MARGIN)
    start_in_time = [one for one in seen if first_slo is None or first_ms(one) <= first_slo]
    return "latency_slo_ms", math.ceil(min(map(total_ms, start_in_time or seen)) * REFUSAL_MARGIN)
