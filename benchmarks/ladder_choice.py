"""From measured cells to a ladder: lower confidence bounds, isotonic over budgets, the frontier, at most 8 rungs.

Pure functions on plain data (`requests.md` section 5). A cell is one rung measured on one split.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from engine.plan import Decoding, Rung

MAX_RUNGS = 8
Z_95 = 1.6449
"""One-sided 95%."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A rung with what the calibration measured.

    Attributes:
        exact: prompts answered exactly, of `prompts`.
        batched_ms: compute per answer in a full batch. alone_ms: time of an answer that has the engine to itself.
        tokens_per_forward: settled tokens per forward after the prompt, looks counted.
        quality: lower confidence bound of the exact-match rate, isotonic over budgets.
    """

    rung: Rung
    exact: float
    prompts: int
    batched_ms: float
    alone_ms: float
    tokens_per_forward: float
    quality: float = 0.0


def wilson_low(successes: float, trials: int, z: float = Z_95) -> float:
    """Lower end of Wilson's interval for a proportion (E. B. Wilson, JASA 22, 1927)."""
    if trials <= 0:
        raise ValueError(f"trials is {trials}; a proportion needs at least one")
    rate = successes / trials
    centre = rate + z * z / (2 * trials)
    spread = z * math.sqrt(rate * (1 - rate) / trials + z * z / (4 * trials * trials))
    return max(0.0, (centre - spread) / (1 + z * z / trials))


def isotonic(values: Sequence[float], weights: Sequence[float]) -> list[float]:
    """The non-decreasing sequence closest to `values` in weighted squares (pool adjacent violators)."""
    pools: list[tuple[float, float, int]] = []
    for value, weight in zip(values, weights, strict=True):
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (left, a, m), (right, b, n) = pools[-2:]
            pools[-2:] = [((left * a + right * b) / (a + b), a + b, m + n)]
    return [value for value, _, count in pools for _ in range(count)]


def with_quality(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Sets `quality`: rates fitted isotonic over K where only the budget differs, then Wilson's lower bound.

    All exact rungs answer alike, so they share the pooled rate. A lossy rung is never taken to be better than they are:
    what it gets right beyond AR is chance.
    """
    families: dict[tuple[object, ...], list[Candidate]] = defaultdict(list)
    for candidate in candidates:
        rung = candidate.rung
        same = ("exact",) if rung.exact else (rung.block_length, rung.threshold, rung.audit)
        families[same].append(candidate)
    fitted = []
    for same, members in families.items():
        rows = sorted(members, key=lambda member: member.rung.refinement_steps)
        rates = [row.exact / row.prompts for row in rows]
        if same == ("exact",):
            pooled = sum(row.exact for row in rows) / sum(row.prompts for row in rows)
            rates = [pooled] * len(rows)
        else:
            rates = isotonic(rates, [row.prompts for row in rows])
        fitted += [
            replace(row, quality=wilson_low(rate * row.prompts, row.prompts))
            for row, rate in zip(rows, rates, strict=True)
        ]
    exact = [row.quality for row in fitted if row.rung.exact]
    most = max(exact, default=1.0)
    return [row if row.rung.exact else replace(row, quality=min(row.quality, most)) for row in fitted]


def dominated(candidate: Candidate, others: Sequence[Candidate]) -> bool:
    """Whether another rung is at least as good and as cheap, alone and in a full batch, and better in one of them."""
    mine = (-candidate.quality, candidate.batched_ms, candidate.alone_ms)
    return any(
        (-other.quality, other.batched_ms, other.alone_ms) != mine
        and -other.quality <= mine[0]
        and other.batched_ms <= mine[1]
        and other.alone_ms <= mine[2]
        for other in others
    )


def choose_ladder(candidates: Sequence[Candidate], most: int = MAX_RUNGS) -> list[Rung]:
    """At most `most` rungs, best to fastest: AR, the best of self-speculation, and lossy ones on the frontier.

    Lossy rungs must lie on the frontier of quality against cost, where cost is both the compute in a full batch and the
    time of a lone answer. Of more than fit, the one whose loss leaves the smallest gap goes first.
    """
    fitted = with_quality(candidates)
    exact = [row for row in fitted if row.rung.exact]
    kept_exact = [row for row in exact if row.rung.decoding is Decoding.AR or not dominated(row, exact)]
    frontier = [row for row in fitted if not row.rung.exact and not dominated(row, fitted)]
    frontier.sort(key=lambda row: row.alone_ms, reverse=True)
    kept_exact.sort(key=lambda row: row.alone_ms, reverse=True)
    while len(kept_exact) > max(most // 2, 1):
        kept_exact.remove(_least_missed(kept_exact, keep=lambda row: row.rung.decoding is Decoding.AR))
    while len(frontier) > most - len(kept_exact):
        frontier.remove(_least_missed(frontier, keep=lambda row: row is frontier[-1]))
    rows = sorted([*kept_exact, *frontier], key=lambda row: (-row.quality, -row.alone_ms))
    return [
        replace(
            row.rung,
            expected_quality=round(row.quality, 4),
            expected_tokens_per_forward=round(row.tokens_per_forward, 3),
        )
        for row in rows
    ]


def _least_missed(rows: Sequence[Candidate], keep: Callable[[Candidate], bool]) -> Candidate:
    """The row closest to a neighbour in (quality, log time), among those that `keep` does not protect."""
    loose = [row for row in rows if not keep(row)]

    def gap(row: Candidate) -> float:
        return min(
            abs(row.quality - other.quality)
            + abs(math.log(row.alone_ms / other.alone_ms))
            + abs(math.log(row.batched_ms / other.batched_ms))
            for other in rows
            if other is not row
        )

    return min(loose, key=lambda row: (gap(row), row.quality))


def linear_fit(x: Sequence[float], y: Sequence[float]) -> tuple[float, float, float]:
    """Least squares y = intercept + slope * x; returns (intercept, slope, R2)."""
    count = len(x)
    mean_x, mean_y = sum(x) / count, sum(y) / count
    spread = sum((value - mean_x) ** 2 for value in x)
    slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / spread
    intercept = mean_y - slope * mean_x
    left = sum((b - intercept - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    total = sum((b - mean_y) ** 2 for b in y)
    return intercept, slope, 1 - left / total
