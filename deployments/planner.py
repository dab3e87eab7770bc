"""From a request, loads and a menu of rungs to a plan or a refusal: pure functions (`requests.md` sections 4, 5).

The chosen plan starts on the rung of highest expected quality whose predicted p95 meets the SLO on some replica; at
equal quality on the cheapest, by the share of the accelerator that it takes there under the present load. Its ladder
goes from that quality down to the fastest rung that the request may use, and the engine moves inside it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from deployments.goal import Goal
from deployments.menu import MOST_RUNGS, Menu, thinned
from deployments.prediction import Prediction, Predictions, predict_all
from deployments.prediction_tables import LoadTable
from deployments.reason import plan_reason
from engine.pace import SAFETY
from engine.plan import Plan, Rung

if TYPE_CHECKING:
    from deployments.history import Length
    from deployments.load import ReplicaLoad
    from deployments.prediction_tables import Floats

REFUSAL_MARGIN = 1.02
"""What `smallest_feasible_slo_ms` adds, so that asking again with it is accepted."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What is to be planned: everything about a request that planning needs, and what lies around the engine.

    Attributes:
        lengths: output tokens to expect, one per rung of the menu.
        qualities: to promise at the request's temperature, one per rung of the menu; None outside the calibrated range.
        extra_ms: p95 of what the HTTP path adds from now on, and what has passed since arrival.
        elapsed_ms: what of that has passed.
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
    elapsed_ms: float = 0.0
    cached: Mapping[str, int] = field(default_factory=dict)
    scales: Mapping[str, float] = field(default_factory=dict)
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Planned:
    """A plan, and the replicas that it may go to: by predicted finish, the one it was made for first.

    Attributes:
        prediction: of its first rung there, seconds in the engine, experience applied.
        length: what it reckons with. cached: prompt tokens that the replica is taken to have.
        scale: what experience multiplied the prediction's p95 with. elapsed_ms: from arrival to the plan.
    """

    plan: Plan
    ranked: tuple[str, ...]
    prediction: Prediction
    length: Length
    cached: int = 0
    scale: float = 1.0
    elapsed_ms: float = 0.0

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


def make_plan(ask: Ask, loads: Sequence[ReplicaLoad]) -> Planned | Refusal:
    """Chooses rung and replica. `loads`: one per replica that may be used; none = 503."""
    if not loads:
        return nothing_serves()
    goal, extra_ms = ask.goal, ask.extra_ms
    predictions, expected = predictions_at(ask, loads)
    in_time = np.less_equal(goal.excess_ms(predictions, extra_ms), 0.0)
    somewhere: list[bool] = np.any(in_time, axis=1).tolist()
    for group in ask.menu.groups:
        if any(somewhere[group.start : group.stop]):
            price_s = np.where(in_time, predictions.accelerator_s, np.inf)
            return _planned(ask, loads, predictions, expected, group, price_s)
    if goal.on_infeasible == "reject":
        return refuse(ask, loads, predictions)
    latest = predictions.first_text_p95_s if goal.latency_slo_ms is None else predictions.p95_s
    fastest = int(latest.min(axis=1).argmin())
    group = range(fastest, fastest + 1)
    return _planned(ask, loads, predictions, expected, group, predictions.accelerator_s, in_time=False)


def nothing_serves() -> Refusal:
    return Refusal(503, "no replica is ready; try again later", None, 5)


def predictions_at(ask: Ask, loads: Sequence[ReplicaLoad]) -> tuple[Predictions, Predictions]:
    """What is predicted of every rung at every replica: what can be promised, and how long it will take.

    They differ for a request with a deadline: what has none makes room for it (`engine/pace.py`), but fills forwards up
    to what that deadline allows. Experience is applied where it is no question of a deadline.
    """
    goal, count = ask.goal, len(loads)
    scales = np.array([[ask.scales.get(mode, 1.0)] for mode in ask.menu.table.modes])
    if not goal.bounded:
        plain = _predicted(ask, LoadTable(loads))
        expected = plain._replace(p95_s=plain.p95_s * scales, first_text_p95_s=plain.first_text_p95_s * scales)
        return expected, expected
    # A replica that does not refuse it takes it in however full it is.
    both = _predicted(ask, LoadTable(loads, True, goal.on_infeasible == "reject"))
    crowded, alone = both.of_replicas(slice(0, count)), both.of_replicas(slice(count, None))
    if goal.latency_slo_ms is None:
        return alone, alone
    room_s = max(0.0, goal.latency_slo_ms - ask.extra_ms) / 1e3 / SAFETY
    p50_s, p95_s = (np.maximum(alone[place], np.minimum(crowded[place], room_s)) for place in (0, 1))
    return alone, alone._replace(p50_s=p50_s, p95_s=p95_s * scales)


def _predicted(ask: Ask, table: LoadTable) -> Predictions:
    cached = [ask.cached.get(load.replica, 0) for load in table.loads]
    lengths = ask.lengths
    medians, reckoned = [length.median for length in lengths], [length.reckoned for length in lengths]
    return predict_all(ask.menu.table, table, ask.prompt_tokens, cached, medians, reckoned)


def _planned(
    ask: Ask,
    loads: Sequence[ReplicaLoad],
    predictions: Predictions,
    expected: Predictions,
    group: range,
    price_s: Floats,
    in_time: bool = True,
) -> Planned:
    """The plan among rungs of one quality: the cheapest of them at each replica, at the one where that is done first.

    Args:
        predictions, expected: as of `predictions_at`.
        price_s: accelerator seconds `[rungs, replicas]`, inf where a rung is out of the question.
    """
    cheapest = price_s[group.start : group.stop].argmin(axis=0) + group.start
    usable = [place for place, rung in enumerate(cheapest.tolist()) if price_s[rung, place] < np.inf]
    ranked = sorted(usable, key=lambda place: (expected.p95_s[cheapest[place], place], loads[place].queue_s))
    here, lead = ranked[0], int(cheapest[ranked[0]])
    ladder, start = ladder_from(ask.menu, lead, in_time)
    length = ask.lengths[lead]
    prediction = expected.at(lead, here)
    predicted_ms = prediction.p95_s * 1e3 + ask.extra_ms
    plan = Plan(
        ladder=ladder,
        start=start,
        predicted_p95_ms=round(predicted_ms, 1),
        slo_ms=ask.goal.latency_slo_ms,
        expected_tokens=length.reckoned,
        weight=ask.weight,
        reason=plan_reason(ask, lead, predictions, ladder, predicted_ms, in_time),
    )
    names = tuple(loads[place].replica for place in ranked)
    scale = ask.scales.get(ask.menu.table.modes[lead], 1.0)
    return Planned(plan, names, prediction, length, ask.cached.get(names[0], 0), scale, ask.elapsed_ms)


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


def refuse(ask: Ask, loads: Sequence[ReplicaLoad], predictions: Predictions) -> Refusal:
    """400 when an idle replica could not do it either, else 429 with the time until it could.

    Args:
        predictions: none of them in time.
    """
    goal = ask.goal
    field, smallest = smallest_feasible(ask, predictions)
    asked = goal.ttft_slo_ms if field == "ttft_slo_ms" else goal.latency_slo_ms
    busy = any(load.sequences or load.queue_s for load in loads)
    idle = _predicted(ask, LoadTable([load.idle() for load in loads]))
    if not busy or not (goal.excess_ms(idle, ask.idle_extra_ms) <= 0).any():
        message = f"{field} is {asked:g}, which not even an idle replica could meet; allowed: at least {smallest}"
        return Refusal(400, message, smallest, None, field)
    wait_s = max(1, math.ceil(min(load.timed_s for load in loads)))
    message = (
        f"{field} is {asked:g}, which cannot be met under the present load; allowed now: at least {smallest}, or later"
    )
    return Refusal(429, message, smallest, wait_s, field)


def smallest_feasible(ask: Ask, predictions: Predictions) -> tuple[str, int]:
    """The bound that stands in the way, and the least that it would have to be, milliseconds."""
    goal, extra_ms = ask.goal, ask.extra_ms
    total_ms = goal.latency_ms(predictions) + extra_ms
    first_slo, slo = goal.ttft_slo_ms, goal.latency_slo_ms
    if first_slo is not None:
        first_ms = goal.first_text_ms(predictions) + extra_ms
        finish_in_time = first_ms if slo is None else first_ms[total_ms <= slo]
        if finish_in_time.size:
            return "ttft_slo_ms", math.ceil(finish_in_time.min() * REFUSAL_MARGIN)
        start_in_time = total_ms[first_ms <= first_slo]
        total_ms = start_in_time if start_in_time.size else total_ms
    return "latency_slo_ms", math.ceil(total_ms.min() * REFUSAL_MARGIN)
