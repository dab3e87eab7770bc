"""From outcomes to numbers: a cell's metrics, and means over seeds with their intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

import numpy as np

from benchmarks.promise_trace import EQUIVALENT_TIERS, SHARES
from deployments.reported_plan import as_predicted_of
from engine.calibration.bootstrap import Interval, mean_interval, widened

if TYPE_CHECKING:
    from benchmarks.policy_run import Outcome
    from engine.plan import Rung

STEPDIAL = "stepdial"
T_95 = {2: 12.706, 3: 4.303, 4: 3.182, 5: 2.776, 6: 2.571, 7: 2.447, 8: 2.365, 9: 2.306, 10: 2.262}
"""Student's t for a two-sided 95% interval of a mean, by number of values."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One policy under one load with one seed.

    Attributes:
        load: share of saturation. duration_s: while requests arrive. end_s: when what was open was cut off.
    """

    policy: str
    load: float
    seed: int
    duration_s: float
    end_s: float
    outcomes: list[Outcome]


def judged(cell: Cell) -> list[Outcome]:
    """The requests that had their whole SLO before the run was cut off; the trace alone decides it, not the policy."""
    return [
        one for one in cell.outcomes if one.request.slo_ms is None or one.due_s + one.request.slo_ms / 1e3 <= cell.end_s
    ]


def goodput(cell: Cell) -> float:
    """Answers that are right and in time, per second in which requests arrived; batch counts when right."""
    return sum(one.good for one in cell.outcomes) / cell.duration_s


def metrics(cell: Cell) -> dict[str, Any]:
    """A cell as plain JSON."""
    rows = judged(cell)
    admitted = [one for one in rows if one.refused is None]
    refusals = [one for one in cell.outcomes if one.refused is not None]
    late = [one for one in admitted if one.request.slo_ms is not None and not one.in_time]
    spent_ms = sum(one.accelerator_ms for one in cell.outcomes)
    late_ms = sum(one.accelerator_ms for one in cell.outcomes if not one.in_time)
    return {
        "policy": cell.policy,
        "load": cell.load,
        "seed": cell.seed,
        "duration_s": cell.duration_s,
        "offered": len(cell.outcomes),
        "judged": len(rows),
        "admitted": len(admitted),
        "refused": len(rows) - len(admitted),
        "refused_share": share(len(rows) - len(admitted), len(rows)),
        "refused_by_status": {str(status): count for status, count in Counter(r.refused for r in refusals).items()},
        "late": len(late),
        "late_by_ms": spread([late_by_ms(one, cell) for one in late]),
        "unfinished": sum(one.latency_ms is None for one in admitted),
        "goodput_per_s": goodput(cell),
        "answered_per_s": sum(one.latency_ms is not None for one in cell.outcomes) / cell.duration_s,
        "right_share_of_answered": share(
            sum(one.right for one in cell.outcomes), sum(one.latency_ms is not None for one in cell.outcomes)
        ),
        "tiers": {tier: tier_metrics([one for one in rows if one.request.tier == tier]) for tier in SHARES},
        "decision_ms": spread([one.own_ms for one in cell.outcomes]),
        "refusal_ms": spread([one.own_ms for one in refusals]),
        "late_start_ms": spread([one.late_start_ms for one in cell.outcomes]),
        "accelerator_ms_on_late_answers": share(late_ms, spent_ms),
        "tokens_on_late_or_unfinished": share(
            sum(one.tokens for one in cell.outcomes if not one.in_time), sum(one.tokens for one in cell.outcomes)
        ),
        "started_on": dict(Counter(rung_name(one.plan.first) for one in cell.outcomes if one.plan is not None)),
        "used": dict(Counter(rung_name(entry.rung) for one in cell.outcomes for entry in one.entries)),
    }


def late_by_ms(one: Outcome, cell: Cell) -> float:
    """How long after its deadline an answer came, or the run ended without it."""
    latency_ms = (cell.end_s - one.due_s) * 1e3 if one.latency_ms is None else one.latency_ms
    return latency_ms - (one.request.slo_ms or 0.0)


def tier_metrics(rows: Sequence[Outcome]) -> dict[str, Any]:
    """One tier of a cell. Attainment of a tier without deadline is the share that was answered."""
    admitted = [one for one in rows if one.refused is None]
    latencies = [one.latency_ms for one in admitted if one.latency_ms is not None]
    in_time = sum(one.in_time for one in admitted)
    return {
        "offered": len(rows),
        "admitted": len(admitted),
        "in_time": in_time,
        "attainment_of_admitted": share(in_time, len(admitted)),
        "attainment_of_offered": share(in_time, len(rows)),
        "right": sum(one.right for one in rows),
        "right_in_time": sum(one.good for one in rows),
        "latency_ms": spread(latencies),
        "slo_ms": spread([one.request.slo_ms for one in rows if one.request.slo_ms is not None]),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """p50, p95, p99 and most; None of nothing."""
    if not values:
        return None
    low, high, last = (float(value) for value in np.quantile(values, (0.5, 0.95, 0.99)))
    return {"p50": low, "p95": high, "p99": last, "most": float(max(values))}


def share(part: float, whole: float) -> float | None:
    """part / whole; None of nothing."""
    return part / whole if whole else None


def rung_name(rung: Rung) -> str:
    """A short name of a rung: mode, block length, and budget and threshold of diffusion."""
    if rung.block_length == 1:
        return "ar"
    if not rung.is_diffusion:
        return f"self-speculation {rung.block_length}"
    level = "" if rung.threshold is None else f" threshold {rung.threshold:g}"
    audit = "" if rung.audit == "off" else f" audit {rung.audit}"
    return f"diffusion {rung.block_length} K{rung.refinement_steps}{level}{audit}"


def mean_over_seeds(values: Sequence[float]) -> Interval:
    """The mean with Student's 95% interval; an interval without end where there is one value."""
    centre = mean(values)
    if len(values) < 2:
        return Interval(centre, float("-inf"), float("inf"))
    half = T_95.get(len(values), 1.96) * stdev(values) / sqrt(len(values))
    return Interval(centre, centre - half, centre + half)


def comparison(cells: Sequence[Cell], load: float, other: str) -> dict[str, Any]:
    """Stepdial's goodput less another policy's at one load: over seeds, and paired request by request."""
    mine = {cell.seed: cell for cell in cells if (cell.policy, cell.load) == (STEPDIAL, load)}
    theirs = {cell.seed: cell for cell in cells if (cell.policy, cell.load) == (other, load)}
    seeds = sorted(mine.keys() & theirs.keys())
    differences = [goodput(mine[seed]) - goodput(theirs[seed]) for seed in seeds]
    pairs = [
        float(one.good) - float(rival.good)
        for seed in seeds
        for one, rival in zip(mine[seed].outcomes, theirs[seed].outcomes, strict=True)
    ]
    return {
        "load": load,
        "policy": other,
        "seeds": len(seeds),
        "stepdial_per_s": mean(goodput(mine[seed]) for seed in seeds),
        "other_per_s": mean(goodput(theirs[seed]) for seed in seeds),
        "difference_per_s": interval_dict(mean_over_seeds(differences)),
        "paired_difference_per_request": interval_dict(mean_interval(np.array(pairs))) if pairs else None,
    }


def equivalence(pairs: Sequence[tuple[float, float]]) -> dict[str, Any] | None:
    """Rightness of Stepdial's answers in the AR-equivalent tiers less AR's on the same prompts, paired.

    Args:
        pairs: (share of Stepdial's answers that were right, AR's was right), a pair per prompt. None of nothing.
    """
    if not pairs:
        return None
    ours, ar = (np.array(column, dtype=np.float64) for column in zip(*pairs, strict=True))
    difference = mean_interval(ours - ar)
    if not np.any(ours != ar):
        # Where no pair differs a resample cannot either: what says how rare a difference may be is their number.
        rare = 1 - widened(Interval(1.0, 1.0, 1.0), len(pairs)).low
        difference = Interval(0.0, -rare, rare)
    return {
        "prompts": len(pairs),
        "stepdial": float(ours.mean()),
        "ar": float(ar.mean()),
        "difference": interval_dict(difference),
        "differing": int(np.sum(ours != ar)),
    }


def equivalence_pairs(cells: Iterable[Cell], ar_right: Mapping[tuple[int, int], bool]) -> list[tuple[float, float]]:
    """A pair for each prompt of the AR-equivalent tiers that Stepdial answered, under however many loads.

    Args:
        ar_right: whether AR's answer is right, by seed and place in the trace.
    """
    right: dict[tuple[int, int], list[bool]] = {}
    for cell in cells:
        if cell.policy != STEPDIAL:
            continue
        for one in cell.outcomes:
            place = (cell.seed, one.request.index)
            if one.request.tier in EQUIVALENT_TIERS and one.latency_ms is not None and place in ar_right:
                right.setdefault(place, []).append(one.right)
    return [(mean(map(float, answers)), float(ar_right[place])) for place, answers in right.items()]


def predictions(cells: Iterable[Cell], load: float) -> dict[str, Any]:
    """Latencies over the p95 that was predicted at admission, by mode; apart, those whose rung was kept to the end."""
    ratios: dict[str, list[float]] = {}
    actual: dict[str, list[tuple[float, float]]] = {}
    for cell in cells:
        if (cell.policy, cell.load) != (STEPDIAL, load):
            continue
        for one in cell.outcomes:
            if one.latency_ms is None or one.predicted_p95_ms is None or one.plan is None:
                continue
            mode = one.plan.first.decoding.value
            used = [entry.rung for entry in one.entries]
            kept = as_predicted_of(one.plan.first, used, bounded=one.request.slo_ms is not None)
            for name in (mode, f"{mode}, rung kept") if kept else (mode,):
                ratios.setdefault(name, []).append(one.latency_ms / one.predicted_p95_ms)
                actual.setdefault(name, []).append((one.latency_ms, one.predicted_p95_ms))
    return {
        name: {
            "answers": len(values),
            "within_prediction": sum(value <= 1 for value in values) / len(values),
            "ratio": spread(values),
            "p95_of_actual_over_p95_of_predicted": float(
                np.quantile([a for a, _ in actual[name]], 0.95) / np.quantile([p for _, p in actual[name]], 0.95)
            ),
        }
        for name, values in ratios.items()
    }


def summary(cells: Sequence[Cell], ar_right: Mapping[tuple[int, int], bool]) -> dict[str, Any]:
    """Everything about a run but its bars (`promise_bars.py`), as plain JSON."""
    loads = sorted({cell.load for cell in cells})
    names = list(dict.fromkeys(cell.policy for cell in cells))
    return {
        "over_seeds": [
            {
                "policy": name,
                "load": load,
                "goodput_per_s": interval_dict(
                    mean_over_seeds([goodput(cell) for cell in cells if (cell.policy, cell.load) == (name, load)])
                ),
            }
            for load in loads
            for name in names
            if any((cell.policy, cell.load) == (name, load) for cell in cells)
        ],
        "against_stepdial": [
            comparison(cells, load, name)
            for load in loads
            for name in names
            if name != STEPDIAL and have_both(cells, load, name)
        ],
        "equivalence": equivalence(equivalence_pairs(cells, ar_right)),
        "predictions": {str(load): predictions(cells, load) for load in loads},
    }


def have_both(cells: Sequence[Cell], load: float, name: str) -> bool:
    """Whether Stepdial and another policy ran under one load with the same seed."""
    seeds = [{cell.seed for cell in cells if (cell.policy, cell.load) == (who, load)} for who in (STEPDIAL, name)]
    return bool(seeds[0] & seeds[1])


def interval_dict(interval: Interval) -> dict[str, float | None]:
    """Plain JSON, which has no infinity: an unknown bound is null."""
    return {
        "value": interval.value,
        "low": interval.low if np.isfinite(interval.low) else None,
        "high": interval.high if np.isfinite(interval.high) else None,
    }
