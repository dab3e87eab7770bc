"""The Replica deployment: one engine, its last word at admission, and what it tells Serve about itself."""

from __future__ import annotations

import asyncio
import logging
import math
import os
import time
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray import serve

from deployments.history import LatencyTails
from deployments.load import LoadMeter, ReplicaLoad, load_met
from deployments.messages import Done, Failed, Invalid, Message, NotInTime, Piece, ReplicaRequest
from deployments.metrics import EngineMetrics
from deployments.prediction import Size, predict
from deployments.process import for_serving
from deployments.ranks import ActorLauncher
from deployments.settings import AppArgs
from engine.admission import Newcomer
from engine.errors import EngineStopped, InvalidRequest, QueueFull
from engine.events import Delta, Finished
from engine.plan import Plan
from engine.request import GenerationOptions, parse_options
from engine.sequence import Sequence

log = logging.getLogger("ray.serve")
LOAD_MAX_AGE_S = 0.05
HUNG_S = 600.0
"""So long no step takes: a few forwards, at most two thousand tokens each, of 14B on a slow CPU."""
FRESH_S = 0.01
"""Age of a load that decides, or that predictions are judged by: about a forward, within which little changes."""


class Replica:
    """Runs the engine, as its only rank or as rank 0 of a tensor-parallel group (`ranks.py`).

    Requests wait in the engine's queue, so that the work of a replica is known in one place.
    """

    def __init__(self, args: AppArgs) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # torch is loaded here and not at import: the process that deploys and the controller do without it.
        from deployments.warm_up import warm_up
        from engine.config import EngineConfig
        from engine.engine import Engine

        config = EngineConfig(
            device="cuda" if args.replica_gpus else "cpu",
            dtype=args.dtype,
            quantization=args.quantization,
            batch_invariant=args.batch_invariant,
            cuda_graphs=args.cuda_graphs,
            narrow_products=args.narrow_products,
            threads=args.threads,
            tp=args.tp,
            tp_backend=args.tp_backend,
            max_sequences=args.max_sequences,
            max_waiting=args.max_waiting,
            kv_tokens=args.kv_tokens,
            cost_model=args.cost_model,
            calibration=args.calibration,
        )
        self.name: str = serve.get_replica_context().replica_id.unique_id
        self.ranks = ActorLauncher(args)
        self.engine = Engine.from_pretrained(args.model, config, launcher=self.ranks)
        warm_up(self.engine)
        self.engine.start()
        self.meter = LoadMeter(self.name, config.prefill_chunk, self.engine.ladder)
        self.tails = LatencyTails()
        self.metrics = EngineMetrics(self.engine.stats)
        self._tiers: dict[str, str] = {}
        self._load: ReplicaLoad | None = None
        for_serving(beside_an_engine=True)

    async def generate(self, request: ReplicaRequest) -> AsyncIterator[Message]:
        """Streams one answer: pieces and an end, or one message that says why there is none."""
        plan = Plan.from_dict(request.plan)
        load = self.load(FRESH_S)
        if request.latency_budget_ms is not None or request.first_text_budget_ms is not None:
            newcomer = _newcomer(request, plan)
            rung = self.engine.rung_for(newcomer)
            if rung is None:
                self.metrics.not_in_time.inc()
                yield NotInTime(False, _finite_ms(self.engine.earliest_s(newcomer)), load.to_dict())
                return
            if not plan.pinned:
                plan = replace(plan, start=plan.ladder.index(rung))
        self._tiers[request.request_id] = request.tier
        begun = time.perf_counter()
        try:
            options = parse_options(GenerationOptions, request.options)
            stream = self.engine.generate(request.prompt_token_ids, options, plan, request.request_id)
            # Closed at once when the caller leaves, so that the sequence is freed and not when it is collected.
            async with aclosing(stream):
                async for event in stream:
                    if isinstance(event, Delta):
                        yield Piece(event.token_ids, event.text, self.load().to_dict(), event.spent)
                    else:
                        if options.latency_slo_ms is not None:
                            latency_s = time.perf_counter() - begun
                            # Once the end is on its way, and not after the yield: the router closes the stream then.
                            asyncio.get_running_loop().call_soon(
                                self._learn, plan, request.size, event, load, latency_s
                            )
                        yield self._done(event)
        except InvalidRequest as error:
            yield Invalid(error.field, error.message)
        except QueueFull:
            yield NotInTime(True, None, self.load().to_dict())
        except EngineStopped as error:
            yield Failed(str(error))
        finally:
            self._tiers.pop(request.request_id, None)

    def load(self, max_age_s: float = LOAD_MAX_AGE_S) -> ReplicaLoad:
        """The present load, computed again when the last one is older than `max_age_s`."""
        now = time.monotonic()
        if self._load is None or now - self._load.at_s > max_age_s:
            self._load = self.meter.read(self.engine.stats(), now, self.tails.values())
        return self._load

    def record_routing_stats(self) -> dict[str, Any]:
        """For routers that got no stream event from here lately (Serve polls it)."""
        return self.load().to_dict()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Seconds of work in all and by tier, for the autoscaling policy (Serve polls it)."""
        by_tier: dict[str, list[Sequence]] = defaultdict(list)
        for sequence in self.engine.present():
            by_tier[self._tiers.get(sequence.id, "")].append(sequence)
        parts = {f"queue_s_{tier}": self.engine.queued_s(present) for tier, present in by_tier.items() if tier}
        return {"queue_s": self.load().queue_s, **parts}

    def check_health(self) -> None:
        """Raises when the engine's loop or another rank is dead or hangs; Serve then replaces this replica, all ranks
        of it."""
        if not self.engine.running:
            self.ranks.raise_death()
            raise EngineStopped("the engine's loop is not running")
        if self.engine.in_step_s > HUNG_S:
            raise EngineStopped(f"the engine's loop has been in one step for {self.engine.in_step_s:.0f} s")

    def metrics_text(self) -> tuple[str, str]:
        """This replica's id and its Prometheus text."""
        return self.name, self.metrics.text()

    def __del__(self) -> None:
        # Serve calls it after the open streams have ended or their grace is over.
        if hasattr(self, "engine"):
            self.engine.close()

    def _learn(self, plan: Plan, size: Size, event: Finished, load: ReplicaLoad, latency_s: float) -> None:
        """Compares the latency with what would have been predicted for the length that the answer really had."""
        report = event.report
        if report.cut_at_deadline or not report.completion_tokens or not self.tails.wants(time.monotonic()):
            return
        actual = Size(size.prompt_tokens, report.completion_tokens)
        met = load_met(load, self.load(FRESH_S), latency_s)
        self.tails.observe(plan.first.decoding.value, latency_s / predict(plan.first, actual, met).p50_s)

    def _done(self, event: Finished) -> Done:
        report = event.report
        return Done(
            finish_reason=event.finish_reason,
            report={**report.to_dict(), "replica": self.name},
            prompt_tokens=report.prompt_tokens,
            completion_tokens=report.completion_tokens,
            ttft_ms=report.ttft_ms,
            cut_at_deadline=report.cut_at_deadline,
            # A short answer is over before an earlier load is old, and is still counted there as work to do.
            load=self.load(0.0).to_dict(),
        )


def _newcomer(request: ReplicaRequest, plan: Plan) -> Newcomer:
    """What the engine's admission needs to know of a request."""
    size, whole_ms, first_ms = request.size, request.latency_budget_ms, request.first_text_budget_ms
    return Newcomer(
        plan=plan,
        prompt_tokens=max(1, size.prompt_tokens - size.cached_tokens),
        output_tokens=size.output_tokens,
        left_s=None if whole_ms is None else whole_ms / 1e3,
        first_left_s=None if first_ms is None else first_ms / 1e3,
        share=request.capacity_share,
    )


def _finite_ms(seconds: float) -> float | None:
    return seconds * 1e3 if math.isfinite(seconds) else None
