"""Stepdial's own policy without HTTP: the router plans in a process of its own, the replica has the last word.

The steps around the engine are those of `deployments/replica.py`, for one replica that never fails.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING

from benchmarks.policies import Decision, Loads, Refused, Served
from benchmarks.router_process import Refusing
from deployments.experience import Answered
from deployments.history import LatencyTails
from deployments.load import load_met
from deployments.prediction import Size, predict
from engine.admission import Newcomer

if TYPE_CHECKING:
    from benchmarks.promise_trace import Request
    from benchmarks.router_process import Offer, RouterProcess
    from deployments.load import ReplicaLoad
    from engine.engine import Engine
    from engine.events import Finished
    from engine.plan import Plan


PICTURE_MAX_AGE_S = 0.01
"""Every event of a stream carries its replica's load, so under load a router's picture is some milliseconds old."""


@dataclass(slots=True)
class _Open:
    """What was known of a request when it was let in."""

    offer: Offer
    plan: Plan
    load: ReplicaLoad


class Stepdial:
    """Asks the router for a plan, and the engine as a replica does."""

    learns = True

    def __init__(self, engine: Engine, router: RouterProcess, name: str = "stepdial") -> None:
        """`router`: may be shared with other engines' policies; `close` ends it."""
        self.name = name
        self.engine = engine
        self._router = router
        self._loads = Loads(engine, engine.ladder)
        self._tails = LatencyTails()
        self._open: dict[int, _Open] = {}
        self._load: ReplicaLoad | None = None

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        """As `POST /v1/completions` would: a plan, or a refusal before any forward."""
        load = self.load()
        offer = await self._router.offer(request, arrived_s, load)
        if isinstance(offer, Refusing):
            return Refused(offer.status)
        elapsed_ms = (perf_counter() - arrived_s) * 1e3 + offer.overhead_ms
        left_ms = math.inf if offer.slo_ms is None else offer.slo_ms - elapsed_ms
        plan = self._admitted(request, offer, left_ms)
        if plan is None:
            return Refused(429)
        self._open[request.index] = _Open(offer, plan, load)
        return Served(plan, None if offer.slo_ms is None else max(1.0, left_ms), plan.predicted_p95_ms)

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
        self._router.learn(known.offer.number, answered)
        self._learn_tail(request, known, finished)

    def close(self) -> None:
        """Ends the router's process."""
        self._router.close()

    def load(self) -> ReplicaLoad:
        """The engine's load, with the tails that were seen here; as old as a router's picture of a busy replica."""
        now_s = perf_counter()
        if self._load is None or now_s - self._load.at_s > PICTURE_MAX_AGE_S:
            self._load = self._loads.now(self._tails.values())
        return self._load

    def _admitted(self, request: Request, offer: Offer, left_ms: float) -> Plan | None:
        """The replica's last word: the plan with the rung that it can start on, None where it is not in time."""
        plan = offer.plan
        if left_ms == math.inf or not offer.checked:
            return plan
        newcomer = Newcomer(
            plan=plan,
            prompt_tokens=len(request.prompt),
            output_tokens=offer.reckoned,
            left_s=left_ms / 1e3,
            share=offer.share,
        )
        rung = self.engine.rung_for(newcomer)
        if rung is None:
            return None
        return plan if plan.pinned else replace(plan, start=plan.ladder.index(rung))

    def _learn_tail(self, request: Request, known: _Open, finished: Finished) -> None:
        """As a replica does, for what has a deadline."""
        report = finished.report
        if not report.completion_tokens or known.offer.slo_ms is None or not self._tails.wants(perf_counter()):
            return
        latency_s = report.latency_ms / 1e3
        met = load_met(known.load, self.load(), latency_s)
        rung, size = known.plan.first, Size(len(request.prompt), report.completion_tokens)
        self._tails.observe(rung.decoding.value, latency_s / predict(rung, size, met).p50_s)
