"""Stepdial's own policy, in one process: the router's planning and the replica's admission, without HTTP between them.

Planning, menus, histories and predictions are the product's (`deployments/planning.py`); the steps around them are
those of `deployments/answering.py` and `deployments/replica.py` for one replica that never fails.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.policies import Decision, Loads, Refused, Served
from deployments.experience import Answered
from deployments.history import LatencyTails
from deployments.load import load_met
from deployments.openai_types import CompletionRequest
from deployments.planner import Planned, Refusal
from deployments.planning import Planning
from deployments.prediction import Size, predict
from deployments.settings import AppArgs
from deployments.tiers import TIERS, Tier
from engine.admission import Newcomer
from engine.request import parse_options

if TYPE_CHECKING:
    from benchmarks.promise_trace import Request
    from deployments.job import Job
    from deployments.load import ReplicaLoad
    from engine.engine import Engine
    from engine.events import Finished
    from engine.plan import Plan


PICTURE_MAX_AGE_S = 0.01
"""Every event of a stream carries its replica's load, so under load a router's picture is some milliseconds old."""


def open_tiers(tiers: Sequence[Tier] = TIERS) -> tuple[Tier, ...]:
    """The shipped tiers without a bound on how tight a request's own SLO may be: the benchmark sets SLOs by length."""
    free = {"tightest_latency_slo_ms": None, "tightest_ttft_slo_ms": None}
    return tuple(tier.model_copy(update=free) for tier in tiers)


@dataclass(slots=True)
class _Open:
    """What was known of a request when it was let in."""

    job: Job
    planned: Planned
    plan: Plan
    load: ReplicaLoad


class Stepdial:
    """Plans as the router does, and asks the engine as a replica does."""

    learns = True

    def __init__(self, engine: Engine, model: str, name: str = "stepdial") -> None:
        self.name = name
        self.engine = engine
        self.planning = Planning(AppArgs(model=model, tiers=open_tiers()))
        self._loads = Loads(engine, engine.ladder)
        self._tails = LatencyTails()
        self._open: dict[int, _Open] = {}
        self._load: ReplicaLoad | None = None

    def decide(self, request: Request, arrived_s: float) -> Decision:
        """As `POST /v1/completions` would: a plan, or a refusal before any forward."""
        planning = self.planning
        job = planning.job(_body(request), {}, f"request-{request.index}", arrived_s)
        load = self.load()
        planned = planning.plan(job, [load])
        if isinstance(planned, Refusal):
            return Refused(planned.status)
        slo_ms = job.goal.latency_slo_ms
        left_ms = math.inf if slo_ms is None else self._left_ms(slo_ms, arrived_s)
        plan = self._admitted(job, planned, left_ms)
        if plan is None:
            return Refused(429)
        self._open[request.index] = _Open(job, planned, plan, load)
        return Served(plan, None if slo_ms is None else max(1.0, left_ms), plan.predicted_p95_ms)

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        """What router and replica remember of an answer: overhead, length, and how right the prediction was."""
        known = self._open.pop(request.index)
        report = finished.report
        answered = Answered(
            entries=[entry.to_dict() for entry in report.plan],
            stopped=finished.finish_reason == "stop",
            completion_tokens=report.completion_tokens,
            engine_ms=report.latency_ms,
            overhead_ms=max(0.0, latency_ms - report.latency_ms),
        )
        self.planning.experience.learn(known.job, known.planned, answered)
        self._learn_tail(request, known, finished)

    def load(self) -> ReplicaLoad:
        """The engine's load, with the tails that were seen here; as old as a router's picture of a busy replica."""
        now_s = perf_counter()
        if self._load is None or now_s - self._load.at_s > PICTURE_MAX_AGE_S:
            self._load = self._loads.now(self._tails.values())
        return self._load

    def _left_ms(self, slo_ms: float, arrived_s: float) -> float:
        """What is left of an SLO for the engine."""
        return slo_ms - (perf_counter() - arrived_s) * 1e3 - self.planning.experience.overhead_ms.value

    def _admitted(self, job: Job, planned: Planned, left_ms: float) -> Plan | None:
        """The replica's last word: the plan with the rung that it can start on, None where it is not in time."""
        plan = planned.plan
        if left_ms == math.inf or job.goal.on_infeasible != "reject":
            return plan
        newcomer = Newcomer(
            plan=plan,
            prompt_tokens=len(job.prompt),
            output_tokens=planned.length.reckoned,
            left_s=left_ms / 1e3,
            share=job.goal.share,
        )
        rung = self.engine.rung_for(newcomer)
        if rung is None:
            return None
        return plan if plan.pinned else replace(plan, start=plan.ladder.index(rung))

    def _learn_tail(self, request: Request, known: _Open, finished: Finished) -> None:
        """As a replica does, for what has a deadline."""
        report = finished.report
        if not report.completion_tokens or known.job.goal.latency_slo_ms is None:
            return
        latency_s = report.latency_ms / 1e3
        met = load_met(known.load, self.load(), latency_s)
        rung, size = known.plan.first, Size(len(request.prompt), report.completion_tokens)
        self._tails.observe(rung.decoding.value, latency_s / predict(rung, size, met).p50_s)


def _body(request: Request) -> CompletionRequest:
    fields = {
        "model": "stepdial-tiny",
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "seed": 0,
        "service_tier": request.tier,
    }
    if request.slo_ms is not None:
        fields["latency_slo_ms"] = request.slo_ms
    body = parse_options(CompletionRequest, fields)
    if not isinstance(body, CompletionRequest):
        raise TypeError("a completion was parsed as something else")
    return body
