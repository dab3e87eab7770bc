"""Why a plan is what it is, in one sentence for the person who asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from deployments.goal import Goal
    from deployments.planner import Ask
    from deployments.prediction import Predictions
    from engine.plan import Rung


def name_of(rung: Rung) -> str:
    """A rung in words."""
    if rung.decoding.value == "ar":
        return "AR"
    if not rung.is_diffusion:
        return f"self-speculation over blocks of {rung.block_length}"
    early = "" if rung.threshold is None else f", threshold {rung.threshold:g}"
    steps = "1 step" if rung.refinement_steps == 1 else f"{rung.refinement_steps} steps"
    early += "" if rung.entropy_bound is None else f", entropy bound {rung.entropy_bound:g}"
    again = "" if rung.remask is None else f", remask {rung.remask:g}"
    audit = "" if rung.audit == "off" else f", audit {rung.audit}"
    return f"diffusion over blocks of {rung.block_length} with {steps}{early}{again}{audit}"


def plan_reason(
    ask: Ask, lead: int, predictions: Predictions, ladder: Sequence[Rung], predicted_ms: float, in_time: bool
) -> str:
    """The rung, its predicted p95 and quality, which bound kept better ones out, and the menu's remark.

    Args:
        lead: the rung, by its place in the menu.
    """
    why, remark = _why(ask, lead, predictions, ladder, predicted_ms, in_time), ask.menu.remark
    return f"{why}; {remark}" if remark else why


def _why(
    ask: Ask, lead: int, predictions: Predictions, ladder: Sequence[Rung], predicted_ms: float, in_time: bool
) -> str:
    goal, menu = ask.goal, ask.menu
    what, known = name_of(menu.rungs[lead]), ask.qualities[lead]
    quality = "" if known is None else f" (expected quality {known:.2f})"
    length = f"; length: {ask.lengths[lead].source}"
    if not in_time:
        text = f"{what}{quality}, the fastest allowed: predicted p95 {predicted_ms:.0f} ms, so no rung meets the SLO of"
        return f"{text} {_slo(goal)}{length}"
    if menu.pinned:
        within = f"; predicted p95 {predicted_ms:.0f} ms within {_slo(goal)}" if goal.bounded else ""
        return f"{what}{quality}, pinned by the request{within}"
    others = f", with {len(ladder) - 1} more rungs for the engine" if len(ladder) > 1 else ""
    if not goal.bounded:
        return f"{what}{quality}: the cheapest of the best quality under the present load{others}; no SLO was stated"
    # The one that was looked at before, at the replica where it would be done first.
    nearest = next(group for group in menu.groups if lead in group).start - 1
    kept_out = ""
    if nearest >= 0:
        place = predictions.p95_s[nearest].argmin()
        late_ms = goal.latency_ms(predictions)[nearest, place] + ask.extra_ms
        bound = "latency_slo_ms"
        if goal.latency_slo_ms is None or late_ms <= goal.latency_slo_ms:
            late_ms, bound = goal.first_text_ms(predictions)[nearest, place] + ask.extra_ms, "ttft_slo_ms"
        kept_out = f"; {name_of(menu.rungs[nearest])} would need {late_ms:.0f} ms, more than {bound} allows"
    text = f"{what}{quality} is the best quality whose predicted p95 of {predicted_ms:.0f} ms meets {_slo(goal)}"
    return f"{text}{others}{kept_out}{length}"


def moved_reason(first: Rung, used: Sequence[Rung]) -> str:
    """What the engine used of the plan's ladder beside its first rung, by price and slack; empty where nothing."""
    others = {name_of(rung): None for rung in used if rung.policy() != first.policy()}
    if not others:
        return ""
    stayed = any(rung.policy() == first.policy() for rung in used)
    return f"; the engine {'also ' if stayed else ''}used {' and '.join(others)}{'' if stayed else ' instead'}"


def _slo(goal: Goal) -> str:
    if goal.latency_slo_ms is not None:
        return f"{goal.latency_slo_ms:g} ms"
    return f"{goal.ttft_slo_ms or 0:g} ms to the first text"
