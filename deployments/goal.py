"""The bounds of a request's time: its own fields before those of its tier."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from deployments.prediction import Predictions
    from deployments.prediction_tables import Floats
    from deployments.tiers import Tier
    from engine.request import GenerationOptions


@dataclass(frozen=True, slots=True)
class Goal:
    """What a request's time may be, milliseconds from its arrival. None = no bound.

    Attributes:
        latency_slo_ms, ttft_slo_ms: the request's own, else its tier's.
        stated: whether the request itself named one.
        on_infeasible: what to do when no rung is fast enough.
        share: of the time that it has, how much forwards may take; heavier tiers keep the rest.
    """

    latency_slo_ms: float | None
    ttft_slo_ms: float | None
    stated: bool
    on_infeasible: Literal["reject", "degrade"]
    share: float = 1.0

    @property
    def bounded(self) -> bool:
        return self.latency_slo_ms is not None or self.ttft_slo_ms is not None

    def latency_ms(self, predictions: Predictions) -> Floats:
        """The smallest total latencies that could be promised, without what is beside the engine."""
        return np.maximum(predictions.p95_s, predictions.kept_s / self.share) * 1e3

    def first_text_ms(self, predictions: Predictions) -> Floats:
        """The smallest times to the first text that could be promised."""
        return np.maximum(predictions.first_text_p95_s, predictions.first_text_kept_s / self.share) * 1e3

    def excess_ms(self, predictions: Predictions, extra_ms: float) -> Floats:
        """By how much predictions miss the tighter of the bounds; at most 0 where both are met.

        Args:
            extra_ms: what is added to the engine's time, elapsed and still to come.
        """
        excess = np.full_like(predictions.p95_s, -np.inf)
        if self.latency_slo_ms is not None:
            excess = self.latency_ms(predictions) + extra_ms - self.latency_slo_ms
        if self.ttft_slo_ms is not None:
            excess = np.maximum(excess, self.first_text_ms(predictions) + extra_ms - self.ttft_slo_ms)
        return excess


def goal_of(options: GenerationOptions, tier: Tier, output_tokens: int = 1, share: float = 1.0) -> Goal:
    """The bounds of a request.

    Args:
        output_tokens: length to reckon with, for tiers with an SLO per token. share: see `Goal`.
    """
    own = options.latency_slo_ms is not None or options.ttft_slo_ms is not None
    latency = options.latency_slo_ms if own else tier.total_slo_ms(output_tokens)
    first = options.ttft_slo_ms if own else tier.ttft_slo_ms
    if own and latency is None:
        latency = tier.total_slo_ms(output_tokens)
    fallback = "reject" if own else tier.on_infeasible
    return Goal(latency, first, own, options.on_infeasible or fallback, share)
