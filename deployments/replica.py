"""The Replica deployment: one engine, its last word at admission, and what it tells Serve about itself."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from ray import serve

from deployments.admission import Open, OpenRequests
from deployments.history import Quantile
from deployments.load import LoadMeter, ReplicaLoad
from deployments.messages import Done, Failed, Invalid, Message, NotInTime, Piece, ReplicaRequest
from deployments.metrics import EngineMetrics
from deployments.planner import Goal, goal_excess_ms
from deployments.prediction import PRIOR_TAIL, Size, predict
from deployments.settings import AppArgs
from engine.errors import EngineStopped, InvalidRequest, QueueFull
from engine.events import Delta, Finished
from engine.plan import Plan
from engine.request import GenerationOptions, parse_options

log = logging.getLogger("ray.serve")
LOAD_MAX_AGE_S = 0.05
MOST_TAIL = 3.0
"""Predictions that fail by more than this say nothing about the next one: the machine stalled."""


class Replica:
    """Runs the engine. Requests wait in the engine's queue, so that the work of a replica is known in one place."""

    def __init__(self, args: AppArgs) -> None:
        os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
        # torch is loaded here and not at import: the process that deploys and the controller do without it.
        from deployments.warm_up import warm_up
        from engine.config import EngineConfig
        from engine.engine import Engine

        config = EngineConfig(
            dtype=args.dtype,
            threads=args.threads,
            max_sequences=args.max_sequences,
            max_waiting=args.max_waiting,
            kv_tokens=args.kv_tokens,
            cost_model=args.cost_model,
        )
        self.name: str = serve.get_replica_context().replica_id.unique_id
        self.engine = Engine.from_pretrained(args.model, config)
        warm_up(self.engine)
        self.engine.start()
        self.meter = LoadMeter(self.name, config.prefill_chunk, self.engine.ladder)
        self.tails = {mode: Quantile(PRIOR_TAIL) for mode in ("ar", "diffusion", "self_speculation")}
        self.metrics = EngineMetrics(self.engine.stats)
        self.open = OpenRequests()
        self._load: ReplicaLoad | None = None

    async def generate(self, request: ReplicaRequest) -> AsyncIterator[Message]:
        """Streams one answer: pieces and an end, or one message that says why there is none."""
        plan = Plan.from_dict(request.plan)
        load = self.load(max_age_s=0.0)
        prediction = predict(plan.first, request.size, load)
        goal = Goal(request.latency_budget_ms, request.first_text_budget_ms, True, "reject")
        now = time.monotonic()
        if goal.bounded:
            late = goal_excess_ms(prediction, goal, 0.0) > 0
            endangered = 0 if late else self.open.endangered(plan.first, request.size, load, now)
            if late or endangered:
                self.metrics.not_in_time.inc()
                yield NotInTime(full=False, endangered=endangered, load=load.to_dict())
                return
        due_s = None if request.latency_budget_ms is None else now + request.latency_budget_ms / 1e3
        self.open.add(request.request_id, Open(plan.first, request.size, due_s))
        begun = time.perf_counter()
        try:
            options = parse_options(GenerationOptions, request.options)
            stream = self.engine.generate(request.prompt_token_ids, options, plan, request.request_id)
            # Closed at once when the caller leaves, so that the sequence is freed and not when it is collected.
            async with aclosing(stream):
                async for event in stream:
                    if isinstance(event, Delta):
                        self.open.settle(request.request_id, len(event.token_ids))
                        yield Piece(event.token_ids, event.text, self.load().to_dict())
                    else:
                        self._learn(plan, request.size, event, load, time.perf_counter() - begun)
                        yield self._done(event)
        except InvalidRequest as error:
            yield Invalid(error.field, error.message)
        except QueueFull:
            yield NotInTime(full=True, endangered=0, load=self.load().to_dict())
        except EngineStopped as error:
            yield Failed(str(error))
        finally:
            self.open.remove(request.request_id)

    def load(self, max_age_s: float = LOAD_MAX_AGE_S) -> ReplicaLoad:
        """The present load, computed again when the last one is older than `max_age_s`."""
        now = time.monotonic()
        if self._load is None or now - self._load.at_s > max_age_s:
            tails = {mode: min(tail.value, MOST_TAIL) for mode, tail in self.tails.items()}
            load = self.meter.read(self.engine.stats(), now, self.open.slots, self.open.context, tails)
            core = self.engine.core
            seen = {sequence.id for sequence in [*core.running, *core.waiting]}
            self._load = replace(load, queue_s=load.queue_s + self.open.unseen_s(seen, load))
        return self._load

    def record_routing_stats(self) -> dict[str, Any]:
        """For routers that got no stream event from here lately (Serve polls it)."""
        return self.load().to_dict()

    def record_autoscaling_stats(self) -> dict[str, float]:
        """Seconds of work, for the autoscaling policy (Serve polls it)."""
        return {"queue_s": self.load().queue_s}

    def check_health(self) -> None:
        """Raises when the engine's loop is dead; Serve then replaces this replica."""
        if not self.engine.running:
            raise EngineStopped("the engine's loop is not running")

    def metrics_text(self) -> tuple[str, str]:
        """This replica's id and its Prometheus text."""
        return self.name, self.metrics.text()

    def __del__(self) -> None:
        # Serve calls it after the open streams have ended or their grace is over.
        if hasattr(self, "engine"):
            self.engine.stop()

    def _learn(self, plan: Plan, size: Size, event: Finished, load: ReplicaLoad, latency_s: float) -> None:
        """Compares the latency with what would have been predicted for the length that the answer really had.

        Under the mean of the load that it met and the load that it leaves: who came later was not to be foreseen, and
        is judged by its own admission.
        """
        report = event.report
        if report.cut_at_deadline or not report.completion_tokens:
            return
        actual = Size(size.prompt_tokens, report.completion_tokens)
        rung = plan.first
        others = max(0, self.open.slots - rung.block_length)
        met = replace(load, slots=(load.slots + others) / 2, queue_s=max(load.queue_s, latency_s))
        self.tails[rung.decoding.value].observe(latency_s / predict(rung, actual, met).p50_s)

    def _done(self, event: Finished) -> Done:
        report = event.report
        return Done(
            finish_reason=event.finish_reason,
            report={**report.to_dict(), "replica": self.name},
            prompt_tokens=report.prompt_tokens,
            completion_tokens=report.completion_tokens,
            ttft_ms=report.ttft_ms,
            cut_at_deadline=report.cut_at_deadline,
            load=self.load().to_dict(),
        )
