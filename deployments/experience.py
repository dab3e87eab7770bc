"""What a router learns from the answers that it has sent: lengths, the cost of the path, how right predictions were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from deployments.history import Calibration, OutputLengths, Quantile
from deployments.prediction_tables import policy_name
from deployments.reported_plan import as_long_as_of, as_predicted_of, rungs_used

if TYPE_CHECKING:
    from collections.abc import Sequence

    from deployments.job import Job
    from deployments.planner import Planned

PRIOR_OVERHEAD_MS = 25.0
PRIOR_IDLE_OVERHEAD_MS = 10.0


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer that nothing disturbed.

    Attributes:
        entries: of the report's `plan`. stopped: whether it ended by itself rather than at a limit.
        engine_ms: from submission to its last token. overhead_ms: what the path added.
        replanned: whether it went to another replica than planned first, so that its plan says nothing of it.
    """

    entries: Sequence[dict[str, Any]]
    stopped: bool
    completion_tokens: int
    engine_ms: float
    overhead_ms: float
    replanned: bool = False


class Experience:
    """One router's.

    Attributes:
        lengths: of answers, by tier, rung and prompt length. calibration: actual over predicted latencies.
        overhead_ms, idle_overhead_ms: what the path adds after planning, its p95, and its p10 for when nothing else
            goes on.
    """

    def __init__(self, expected_output_tokens: int) -> None:
        self.lengths = OutputLengths(expected_output_tokens)
        self.calibration = Calibration()
        self.overhead_ms = Quantile(PRIOR_OVERHEAD_MS)
        self.idle_overhead_ms = Quantile(PRIOR_IDLE_OVERHEAD_MS, q=0.1)

    def learn(self, job: Job, planned: Planned, answered: Answered) -> None:
        """Remembers an answer."""
        if not answered.replanned:
            # What had passed by then was known to the plan, and no part of what it had to expect.
            overhead_ms = max(0.0, answered.overhead_ms - planned.elapsed_ms)
            self.overhead_ms.observe(overhead_ms)
            self.idle_overhead_ms.observe(overhead_ms)
        rungs = rungs_used(answered.entries)
        first = planned.plan.first
        alike = next((rung for rung in (first, *rungs) if as_long_as_of(rung, rungs)), None)
        name = "" if alike is None else policy_name(alike)
        seen = self.lengths.observe if answered.stopped else self.lengths.observe_cut
        seen(len(job.prompt), answered.completion_tokens, job.tier.name, name)
        if as_predicted_of(first, rungs, bounded=job.goal.bounded) and not answered.replanned:
            predicted_ms = planned.prediction.p95_s / planned.scale * 1e3
            self.calibration.observe(
                job.tier.name, job.goal.bounded, first.decoding.value, answered.engine_ms / predicted_ms
            )
