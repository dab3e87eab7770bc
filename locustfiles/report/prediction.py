"""Predicted p95 against what happened: is the promise kept as often as it says?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from deployments.history import quantile
from locustfiles.record import Record

PROMISED = 0.95
GROUPS = 10
LEAST_OF_A_GROUP = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """Answers with similar predictions, or of one mode.

    Attributes:
        name: of the group. answers: how many.
        predicted_ms: median of their predicted p95. actual_p50_ms, actual_p95_ms: of their latencies.
        within: share that took at most what was predicted; 95% is right, more is caution, less breaks promises.
        ratio_p50, ratio_p95: of actual over predicted; a ratio_p95 of 1 is right.
    """

    name: str
    answers: int
    predicted_ms: float
    actual_p50_ms: float
    actual_p95_ms: float
    within: float
    ratio_p50: float
    ratio_p95: float


@dataclass(frozen=True, slots=True)
class Prediction:
    """Calibration of all answers with a prediction, by size of the prediction and by mode of the first rung.

    The actual latency is the client's, from sending to the last byte.
    """

    overall: Calibration | None
    deciles: list[Calibration] = field(default_factory=list)
    modes: list[Calibration] = field(default_factory=list)


Pair = tuple[float, float]
"""Predicted p95 and actual latency, ms."""


def pairs_by_mode(records: Sequence[Record]) -> dict[str, list[Pair]]:
    """(predicted, actual) of the answers that have a prediction, by mode."""
    modes: dict[str, list[Pair]] = {}
    for record in records:
        predicted_ms = record.said.get("predicted_p95_ms")
        if record.answered and predicted_ms and record.wire_ms is not None:
            modes.setdefault(record.said.get("decoding") or "none", []).append((predicted_ms, record.wire_ms))
    return modes


def prediction(records: Sequence[Record]) -> Prediction:
    """How good the predictions were."""
    modes = pairs_by_mode(records)
    pairs = sorted(pair for group in modes.values() for pair in group)
    if not pairs:
        return Prediction(None)
    groups = max(1, min(GROUPS, len(pairs) // LEAST_OF_A_GROUP))
    bounds = [round(len(pairs) * part / groups) for part in range(groups + 1)]
    deciles = [
        calibration(f"{pairs[low][0]:.0f} to {pairs[high - 1][0]:.0f} ms", pairs[low:high])
        for low, high in pairwise(bounds)
    ]
    return Prediction(
        calibration("all", pairs), deciles, [calibration(mode, group) for mode, group in sorted(modes.items())]
    )


def calibration(name: str, pairs: Sequence[Pair]) -> Calibration:
    """The numbers of a group that has at least one pair."""
    actual = [pair[1] for pair in pairs]
    ratios = [done / predicted for predicted, done in pairs]
    return Calibration(
        name,
        len(pairs),
        quantile([pair[0] for pair in pairs], 0.5),
        quantile(actual, 0.5),
        quantile(actual, PROMISED),
        sum(ratio <= 1 for ratio in ratios) / len(pairs),
        quantile(ratios, 0.5),
        quantile(ratios, PROMISED),
    )
