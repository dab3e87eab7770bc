"""From measured candidates to a ladder: the frontier of quality against cost at several loads, at most 8 rungs.

Pure functions on plain data (`requests.md` section 5). What is not offered is said, with the reason.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from engine.calibration.bootstrap import Floats, Interval, isotonic_intervals, rate_interval
from engine.calibration.cells import describe
from engine.plan import Decoding, Rung

MAX_RUNGS = 8
SAME_COST = 0.05
"""Of two rungs of one quality neither is cheaper by less than this: a cost measured again differs by as much, and on
another machine the order of the two may be the other one."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rung with what was measured of it.

    Attributes:
        quality: as `quality_intervals` gives it; its lower bound is what rungs are compared by.
        cost_ms: per load (prompts at the same time) ms per answer: at 1 its latency, else its share of compute.
        tokens_per_forward: settled tokens per forward after the prompt, looks counted.
    """

    rung: Rung
    quality: Interval
    cost_ms: Mapping[int, float]
    tokens_per_forward: float

    @property
    def is_ar(self) -> bool:
        return self.rung.decoding is Decoding.AR


@dataclass(frozen=True, slots=True)
class Omission:
    """A candidate that is not offered, and why in one sentence. `dominated_by`: per load the rung that is better."""

    rung: Rung
    reason: str
    dominated_by: Mapping[int, Rung]


@dataclass(frozen=True, slots=True)
class Choice:
    """The rungs of a ladder, best to fastest, and the candidates that are not in it."""

    kept: tuple[Candidate, ...]
    omitted: tuple[Omission, ...]


def quality_intervals(outcomes: Mapping[Rung, Floats]) -> dict[Rung, Interval]:
    """Quality of each rung from its outcomes in 0..1 on the same prompts, `[prompts]` each.

    All exact rungs answer alike, so they share the interval of their mean per prompt. Rungs that differ in nothing but
    the budget are fitted isotonic over it. A lossy rung is never taken to be better than the exact ones: what it gets
    right beyond AR is chance.
    """
    exact = [rung for rung in outcomes if rung.exact]
    found: dict[Rung, Interval] = {}
    if exact:
        found.update(dict.fromkeys(exact, rate_interval(np.mean([outcomes[rung] for rung in exact], axis=0))))
    families: dict[tuple[object, ...], list[Rung]] = defaultdict(list)
    for rung in outcomes:
        if not rung.exact:
            families[rung.block_length, rung.threshold, rung.audit].append(rung)
    for members in families.values():
        members.sort(key=lambda rung: rung.refinement_steps)
        intervals = isotonic_intervals(np.stack([outcomes[rung] for rung in members]))
        found.update(zip(members, intervals, strict=True))
    if not exact:
        return found
    most = found[exact[0]]
    return {rung: row if rung.exact else _at_most(row, most) for rung, row in found.items()}


def _at_most(row: Interval, most: Interval) -> Interval:
    return Interval(min(row.value, most.value), min(row.low, most.low), min(row.high, most.high))


def dominator(candidate: Candidate, others: Sequence[Candidate], load: int) -> Candidate | None:
    """The cheapest rung that is better and as cheap at `load`, or as good and cheaper (`SAME_COST`).

    None on the frontier.

    An exact rung is compared with exact ones only: that it gives AR's tokens is certain, not estimated.
    """

    def better(other: Candidate) -> bool:
        if candidate.rung.exact and not other.rung.exact:
            return False
        gains = other.quality.low - candidate.quality.low
        # What measures alike and is exact is sure to be as good, so that it need not be cheaper.
        sure = other.rung.exact and not candidate.rung.exact
        factor = 1.0 if gains > 0 else 1 + SAME_COST if sure else 1 - SAME_COST
        return gains >= 0 and other.cost_ms[load] <= candidate.cost_ms[load] * factor

    return min((other for other in others if better(other)), key=lambda other: other.cost_ms[load], default=None)


def choose(candidates: Sequence[Candidate], most: int = MAX_RUNGS) -> Choice:
    """At most `most` rungs, best to fastest: AR, and those on the frontier of at least one load.

    Of more than fit, the one closest to a neighbour (in quality and in the logarithm of its costs) goes first; AR and
    the cheapest rung at every load stay.
    """
    loads = sorted({load for candidate in candidates for load in candidate.cost_ms})

    def on_frontier(candidate: Candidate) -> bool:
        return candidate.is_ar or any(dominator(candidate, candidates, load) is None for load in loads)

    kept = [candidate for candidate in candidates if on_frontier(candidate)]
    dominated = [candidate for candidate in candidates if candidate not in kept]
    cut: list[Omission] = []
    protected = {candidate.rung for candidate in kept if candidate.is_ar}
    protected |= {min(kept, key=lambda row: row.cost_ms[load]).rung for load in loads if kept}
    while len(kept) > most:
        loose = [row for row in kept if row.rung not in protected] or [row for row in kept if not row.is_ar]
        gone = min(loose, key=lambda row: (_gap(row, _neighbour(row, kept)), row.quality.low, row.rung.exact))
        near = _neighbour(gone, kept)
        kept.remove(gone)
        reason = f"on the frontier, but a ladder has at most {most} rungs and this one is the closest to another: "
        cut.append(Omission(gone.rung, reason + describe(near.rung), {}))
    kept.sort(key=lambda row: (-row.quality.low, -row.cost_ms[loads[0]]))
    omitted = [_dominated(candidate, kept, candidates, loads) for candidate in dominated]
    return Choice(tuple(kept), (*omitted, *cut))


def remeasured(choice: Choice, qualities: Mapping[Rung, Interval]) -> Choice:
    """The chosen rungs with the qualities of prompts that they were not chosen on; rungs that these take off the
    frontier, or that were not measured on them, are not offered."""
    rows = [replace(row, quality=qualities[row.rung]) for row in choice.kept if row.rung in qualities]
    lost = [row.rung for row in choice.kept if row.rung not in qualities]
    again = choose(rows)
    omitted = [
        *choice.omitted,
        *(Omission(rung, "not measured on the selection split in time", {}) for rung in lost),
        *(replace(row, reason=f"on the selection split {row.reason}") for row in again.omitted),
    ]
    return Choice(again.kept, tuple(omitted))


def _dominated(
    candidate: Candidate, kept: Sequence[Candidate], candidates: Sequence[Candidate], loads: Sequence[int]
) -> Omission:
    """Names the better rung at every load, one that is offered where there is one."""
    found = {load: dominator(candidate, kept, load) or dominator(candidate, candidates, load) for load in loads}
    better = {load: other for load, other in found.items() if other is not None}
    by_rung: dict[Rung, list[str]] = defaultdict(list)
    for load, other in better.items():
        by_rung[other.rung].append(
            f"load {load} (quality {other.quality.low:.3f} against {candidate.quality.low:.3f}, "
            f"{other.cost_ms[load]:.1f} ms against {candidate.cost_ms[load]:.1f})"
        )
    parts = [f"by {describe(rung)} at {', '.join(where)}" for rung, where in by_rung.items()]
    return Omission(
        candidate.rung, "dominated " + "; ".join(parts), {load: other.rung for load, other in better.items()}
    )


def _neighbour(row: Candidate, rows: Sequence[Candidate]) -> Candidate:
    return min((other for other in rows if other is not row), key=lambda other: _gap(row, other))


def _gap(row: Candidate, other: Candidate) -> float:
    costs = sum(abs(math.log(row.cost_ms[load]) - math.log(other.cost_ms[load])) for load in row.cost_ms)
    return abs(row.quality.low - other.quality.low) + costs / len(row.cost_ms)
