"""The bars of the promise, each with what was measured for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean

import numpy as np

from benchmarks.promise_report import (
    STEPDIAL,
    Cell,
    comparison,
    equivalence,
    equivalence_pairs,
    goodput,
    have_both,
    judged,
    late_by_ms,
    predictions,
)
from benchmarks.promise_trace import EQUIVALENT_TIERS, SHARES

STEADY = {0.5: (0.99, 0.02), 0.8: (0.97, 0.05)}
"""Load as a share of saturation: least attainment of what was admitted, most refused."""
OVERLOAD = (1.5, 3.0)
LEAST_OF_PEAK = 0.9
EQUIVALENCE = 0.01
MOST_REFUSAL_MS = 50.0
PREDICTION_ERROR = 0.2
ENOUGH_PREDICTIONS = 20
MOST_LATE_IN_OVERLOAD = 0.03
"""Of what was admitted: as at 80% of saturation."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One sentence of the promise, and whether it was kept."""

    text: str
    passed: bool


def bars(cells: Sequence[Cell], ar_right: Mapping[tuple[int, int], bool]) -> list[Bar]:
    """Every sentence of the promise that these cells can judge."""
    found: list[Bar] = []
    mine = [cell for cell in cells if cell.policy == STEPDIAL]
    loads = sorted({cell.load for cell in mine})
    for load in loads:
        at_load = [cell for cell in mine if cell.load == load]
        if load in STEADY:
            found += steady_bars(at_load, load)
            found += prediction_bars(cells, load)
        if load in OVERLOAD:
            found.append(_patience_bar(at_load, load))
        found += goodput_bars(cells, load)
    found += _peak_bars(mine, loads)
    found += _refusal_bars(mine)
    same = equivalence(equivalence_pairs(cells, ar_right))
    if same is not None:
        low = same["difference"]["low"]
        text = (
            f"answers of {' and '.join(sorted(EQUIVALENT_TIERS))} against AR's on the same {same['prompts']} prompts: "
            f"{same['difference']['value']:+.4f}, 95% interval from {low:+.4f} (at least {-EQUIVALENCE})"
        )
        found.append(Bar(text, low >= -EQUIVALENCE))
    return found


def steady_bars(cells: Sequence[Cell], load: float) -> list[Bar]:
    """Attainment of every tier and refusals of Stepdial at one load, over its seeds together."""
    least, most = STEADY[load]
    found = []
    rows = [one for cell in cells for one in judged(cell)]
    for tier in SHARES:
        admitted = [one for one in rows if one.request.tier == tier and one.refused is None]
        if admitted:
            reached = sum(one.in_time for one in admitted) / len(admitted)
            text = f"{tier} at {load:.0%}: {reached:.2%} of {len(admitted)} admitted in time (at least {least:.0%})"
            found.append(Bar(text, reached >= least))
    if rows:
        refused = sum(one.refused is not None for one in rows) / len(rows)
        found.append(Bar(f"refused at {load:.0%}: {refused:.2%} (at most {most:.0%})", refused <= most))
    return found


def prediction_bars(cells: Sequence[Cell], load: float) -> list[Bar]:
    """The p95 of actual over predicted latency, of every mode with enough answers whose rung was kept."""
    found = []
    for name, row in predictions(cells, load).items():
        if name.endswith("rung kept") and row["answers"] >= ENOUGH_PREDICTIONS:
            error = row["ratio"]["p95"] - 1
            text = f"p95 prediction of {name} at {load:.0%}: off by {error:+.1%} (at most {PREDICTION_ERROR:.0%})"
            found.append(Bar(text, abs(error) <= PREDICTION_ERROR))
    return found


def goodput_bars(cells: Sequence[Cell], load: float) -> list[Bar]:
    """Stepdial's goodput against every other policy's at one load: not below it beyond the interval over seeds."""
    found = []
    for other in sorted({cell.policy for cell in cells if cell.load == load} - {STEPDIAL}):
        if not have_both(cells, load, other):
            continue
        row = comparison(cells, load, other)
        difference = row["difference_per_s"]
        text = (
            f"goodput at {load:.0%} against {other}: {row['stepdial_per_s']:.2f} to {row['other_per_s']:.2f} a second, "
            f"difference {difference['value']:+.2f}"
        )
        if row["seeds"] > 1:
            text += f" (95% interval {difference['low']:+.2f} to {difference['high']:+.2f})"
        # One seed has no interval: then the values themselves are compared.
        bound = difference["high"] if row["seeds"] > 1 else difference["value"]
        found.append(Bar(text, bound >= 0))
    return found


def _peak_bars(cells: Sequence[Cell], loads: Sequence[float]) -> list[Bar]:
    reached = {load: mean(goodput(cell) for cell in cells if cell.load == load) for load in loads}
    peak = max(reached.values(), default=0.0)
    return [
        Bar(
            f"goodput at {load:.0%}: {reached[load] / peak:.1%} of its peak (at least {LEAST_OF_PEAK:.0%})",
            reached[load] >= LEAST_OF_PEAK * peak,
        )
        for load in loads
        if load in OVERLOAD and peak > 0
    ]


def _refusal_bars(cells: Sequence[Cell]) -> list[Bar]:
    times = [one.own_ms for cell in cells for one in cell.outcomes if one.refused is not None]
    if not times:
        return []
    text = f"the longest of {len(times)} refusals took {max(times):.1f} ms (at most {MOST_REFUSAL_MS:g})"
    return [Bar(text, max(times) <= MOST_REFUSAL_MS)]


def _patience_bar(cells: Sequence[Cell], load: float) -> Bar:
    admitted = [
        (one, cell) for cell in cells for one in judged(cell) if one.refused is None and one.request.slo_ms is not None
    ]
    late = [late_by_ms(one, cell) for one, cell in admitted if not one.in_time]
    part = len(late) / max(len(admitted), 1)
    by = f", half of them by at most {np.median(late):.0f} ms, all by at most {max(late):.0f}" if late else ""
    text = (
        f"waited past their deadline at {load:.0%}: {len(late)} of {len(admitted)} admitted, {part:.2%} "
        f"(at most {MOST_LATE_IN_OVERLOAD:.0%}){by}"
    )
    return Bar(text, part <= MOST_LATE_IN_OVERLOAD)
