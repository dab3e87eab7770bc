"""One request's way: plan, stream, plan again when a replica refuses, go on elsewhere when one dies or has too much."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncGenerator
from typing import TYPE_CHECKING, Any, Literal

from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, RayServeException, RequestCancelledError

from deployments.course import Course, stepdial_object
from deployments.errors import ApiError, refused
from deployments.experience import Answered
from deployments.job import End, Job, Text
from deployments.load import ReplicaLoad
from deployments.load_board import BOARD
from deployments.messages import Done, Failed, Invalid, NotInTime, Piece, ReplicaRequest
from deployments.moving import MOST_MOVES
from deployments.planner import Planned, Refusal
from deployments.prediction import Size
from deployments.prefix_memory import PREFIXES, chain
from deployments.resume import ResumePoint, already_over, resume_point, shifted_options, shifted_plan, thinking_used
from engine.events import Spent

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentResponseGenerator

    from deployments.router import Router
    from engine.plan import Plan

log = logging.getLogger("ray.serve")
POLL_S = 0.1


class Answering:
    """Drives one job. `plan` is set before the first event; `events` is read once."""

    def __init__(self, router: Router, job: Job) -> None:
        self.router = router
        self.planning = router.planning
        self.job = job
        # Clients may send one x-request-id many times at once; the engine needs to tell their requests apart.
        self.key = f"{job.request_id}-{uuid.uuid4().hex[:12]}"
        self.plan: Plan | None = None
        self.planned: Planned | None = None
        self.expected_quality: float | None = None
        self.replica: str | None = None
        self.course = Course()
        self._tokens: list[int] = []
        self._text = ""
        self._repeated = 0
        self._repeated_ids = 0
        self._spent = Spent()
        self._excluded: set[str] = set()
        self._refused: dict[str, NotInTime] = {}
        self._stream: DeploymentResponseGenerator | None = None
        self._moving = False

    @property
    def tokens(self) -> int:
        """Output tokens that came so far."""
        return len(self._tokens)

    @property
    def arrived_s(self) -> float:
        """When the ingress saw the request, `time.perf_counter()`."""
        return self.job.arrived_s

    async def events(self) -> AsyncGenerator[Text | End, None]:
        """Text as it is committed, then the end. Raises ApiError; before the first event nothing was spent."""
        attempts, mover = self.router.args.max_attempts, self.router.mover
        try:
            while True:
                request = await self._request()
                try:
                    stream = self._stream = self.router.handle.generate.remote(request)
                    self._moving = False
                    if self._promised_nothing:
                        mover.watch(self)
                    try:
                        async for message in stream:
                            if isinstance(message, Piece):
                                text = self._take(message)
                                if text is not None:
                                    yield text
                            elif isinstance(message, Done):
                                yield self._end(message)
                                return
                            elif isinstance(message, Invalid):
                                raise ApiError(400, message.message, message.field)
                            elif isinstance(message, NotInTime):
                                await self._refused_there(message)
                                break
                            elif isinstance(message, Failed):
                                raise ReplicaFailed(message.message)
                    finally:
                        mover.forget(self)
                        # Leaving early, for whatever reason, frees the sequence; after the end it does nothing.
                        stream.cancel()
                except RequestCancelledError:
                    if not self._moving:
                        raise
                    over = self._moved_away()
                    if over is not None:
                        yield over
                        return
                except BackPressureError:
                    raise ApiError(429, "too many open requests; try again later", None, "overloaded", RETRY) from None
                except (RayActorError, RayServeException, ReplicaFailed) as error:
                    over = self._failed_there(error, attempts)
                    if over is not None:
                        yield over
                        return
        finally:
            BOARD.done(self.key)

    def move(self) -> bool:
        """Leaves its replica for one where it will be done sooner; whether it does. For the loop of `events`."""
        if self._stream is None or self._moving or self.course.moves >= MOST_MOVES:
            return False
        if self._point().tokens < len(self._tokens):
            # Some text is held back, so that it would go on inside a block: it waits for the next one.
            return False
        planned = self._plan()
        if isinstance(planned, Refusal) or planned.replica == BOARD.place_of(self.key):
            return False
        self._moving = True
        self._stream.cancel()
        return True

    @property
    def _promised_nothing(self) -> bool:
        """Whether it may wait, at any replica: no deadline was the condition of letting it in."""
        goal = self.job.goal
        return not goal.bounded or goal.on_infeasible == "degrade"

    @property
    def _let_in(self) -> bool:
        """Whether a replica had it before: it is refused no more."""
        return self.course.failures + self.course.moves > 0

    async def _request(self) -> ReplicaRequest:
        """Plans and says what a replica is to do. Raises ApiError when there is no plan."""
        job = self.job
        planned = self._plan()
        if isinstance(planned, Refusal) and planned.status == 503:
            await self.router.find_replicas()
            planned = self._plan()
        if isinstance(planned, Refusal) and planned.status == 503 and self._let_in:
            planned = await self._wait_for_replica()
        if isinstance(planned, Refusal):
            self.router.metrics.refusals.labels(job.tier.name, str(planned.status)).inc()
            raise refused(planned)
        if self.plan is None or not self._let_in:
            self.plan, self.planned = planned.plan, planned
            self.expected_quality = self.planning.quality.expected_quality(planned.plan.first, job.options.temperature)
        checked = not (self._promised_nothing or self._let_in)
        elapsed_ms = (time.perf_counter() - job.arrived_s) * 1e3 + self.planning.experience.overhead_ms.value

        def left(slo_ms: float | None) -> float | None:
            return None if slo_ms is None or not checked else slo_ms - elapsed_ms

        fields = job.fields
        if self.course.base:
            marks = self.router.think_ids()
            thought = 0 if marks is None else thinking_used(job.prompt, self._tokens[: self.course.base], *marks)
            fields = shifted_options(fields, self.course.base, thought)
        # The engine counts from its own arrival; the tier's SLOs are the request's to it.
        slos = {"latency_slo_ms": job.goal.latency_slo_ms, "ttft_slo_ms": job.goal.ttft_slo_ms}
        fields = {
            **fields,
            **{name: max(1.0, slo_ms - elapsed_ms) for name, slo_ms in slos.items() if slo_ms is not None},
        }
        plan = planned.plan if self.plan is None else self.plan
        PREFIXES.expect(self.key, job.page_keys)
        return ReplicaRequest(
            request_id=self.key,
            prompt_token_ids=job.prompt + self._tokens[: self.course.base],
            options=fields,
            plan=shifted_plan(plan.to_dict(), self.course.base),
            size=Size(len(job.prompt), planned.length.reckoned, planned.length.median, planned.cached),
            tier=job.tier.name,
            latency_budget_ms=left(job.goal.latency_slo_ms),
            first_text_budget_ms=left(job.goal.ttft_slo_ms),
            capacity_share=job.goal.share,
            work_s=planned.prediction.accelerator_s,
            slots=plan.first.block_length,
            ranked=planned.ranked,
            excluded=tuple(self._excluded | self._refused.keys()),
        )

    def _plan(self) -> Planned | Refusal:
        return self.planning.plan(self.job, self._usable(), degrade=self._let_in)

    def _usable(self) -> list[ReplicaLoad]:
        """Loads of the replicas that have neither failed nor refused this request."""
        return [
            load for load in BOARD.loads() if load.replica not in self._excluded and load.replica not in self._refused
        ]

    async def _wait_for_replica(self) -> Planned | Refusal:
        """A request that was admitted waits for a replica to come back."""
        planned = self._plan()
        until = time.monotonic() + self.router.args.failover_wait_s
        while isinstance(planned, Refusal) and time.monotonic() < until:
            await asyncio.sleep(POLL_S)
            planned = self._plan()
        return planned

    def _take(self, piece: Piece) -> Text | None:
        """New text of a piece, without what the client has from before a failure."""
        BOARD.report(ReplicaLoad.from_dict(piece.load))
        self.replica = piece.load["replica"]
        self._spent = piece.spent
        self._tokens.extend(piece.token_ids)
        dropped = min(self._repeated, len(piece.text))
        self._repeated -= dropped
        fresh = piece.text[dropped:]
        skipped = min(self._repeated_ids, len(piece.token_ids))
        self._repeated_ids -= skipped
        token_ids = piece.token_ids[skipped:]
        self._text += fresh
        if not fresh and not token_ids:
            return None
        if self.course.first_text_s is None:
            self.course.first_text_s = time.perf_counter() - self.job.arrived_s
        return Text(fresh, token_ids)

    async def _refused_there(self, message: NotInTime) -> None:
        """The replica had the last word, over all of the plan's ladder: the next best replica is asked.

        Raises ApiError when every replica has refused, or the rest is known to be of no use.
        """
        load = ReplicaLoad.from_dict(message.load)
        BOARD.report(load)
        self.course.replans += 1
        self.router.metrics.replans.inc()
        self._refused[load.replica] = message
        if isinstance(self._plan(), Planned):
            return
        if self._let_in:
            # Its place was given to somebody else: it waits for the next one.
            self._refused = {}
            await asyncio.sleep(POLL_S)
            return
        loads = [ReplicaLoad.from_dict(said.load) for said in self._refused.values()]
        offers = [said.earliest_ms for said in self._refused.values() if said.earliest_ms is not None]
        self.router.metrics.refusals.labels(self.job.tier.name, "429").inc()
        raise refused(self.planning.refusal(self.job, [*self._usable(), *loads], min(offers, default=None)))

    def _failed_there(self, error: Exception, attempts: int) -> End | None:
        """A replica died: notes it, and where to go on; an End when the answer was complete. Raises ApiError."""
        job, router = self.job, self.router
        victim = BOARD.place_of(self.key)
        log.warning("request %s: replica %s failed (%s); going on elsewhere", job.request_id, victim, error)
        if victim is not None:
            BOARD.forget(victim)
            self._excluded.add(victim)
        self._refused = {}
        self.course.failures += 1
        router.metrics.failovers.inc()
        if self.course.failures >= attempts:
            raise ApiError(
                503, f"{self.course.failures} replicas failed under this request", None, "replicas_failed", RETRY
            )
        return self._go_on(victim)

    def _moved_away(self) -> End | None:
        """It left its replica: notes where to go on; an End when the answer was complete."""
        place = BOARD.place_of(self.key)
        self.course.moves += 1
        self._refused = {}
        self.router.metrics.moves.inc()
        log.info("request %s: moved from replica %s after %d tokens", self.job.request_id, place, len(self._tokens))
        return self._go_on(place)

    def _go_on(self, left: str | None) -> End | None:
        """Notes where the answer goes on, after what came from the replica that it left; an End when that was all."""
        job, router, course = self.job, self.router, self.course
        course.spent, self._spent = course.spent.and_then(self._spent), Spent()
        over = already_over(self._tokens, job.options.max_tokens, router.end_ids(job.options))
        if over is not None:
            return self._ended(over, len(self._tokens), {"replica": left}, cut=False)
        point = self._point()
        self._repeated_ids += len(self._tokens) - point.tokens
        del self._tokens[point.tokens :]
        course.base, self._repeated = point.tokens, point.repeated_text
        return None

    def _point(self) -> ResumePoint:
        """Where the answer would go on elsewhere."""
        tokenizer = self.router.tokenizer
        return resume_point(self._tokens, self._text, None if tokenizer is None else tokenizer.decode)

    def _end(self, done: Done) -> End:
        job = self.job
        BOARD.report(ReplicaLoad.from_dict(done.load))
        latency_ms = (time.perf_counter() - job.arrived_s) * 1e3
        completion_tokens = self.course.base + done.completion_tokens
        if not self.course.failures and not self.course.base:
            self._learn(done, latency_ms)
        report = dict(done.report)
        if self.course.base:
            report["plan"] = [
                {**entry, "from_token": entry["from_token"] + self.course.base} for entry in report.get("plan", ())
            ]
        reason: Literal["stop", "length"] = "stop" if done.finish_reason == "stop" else "length"
        return self._ended(reason, completion_tokens, report, done.cut_at_deadline)

    def _learn(self, done: Done, latency_ms: float) -> None:
        """Remembers of an undisturbed answer: overhead, length, prefix, and how right its prediction was."""
        job, planning, planned = self.job, self.planning, self.planned
        if planned is None or done.cut_at_deadline:
            return
        engine_ms = done.report["latency_ms"]
        answered = Answered(
            entries=done.report.get("plan", ()),
            stopped=done.finish_reason == "stop",
            completion_tokens=done.completion_tokens,
            engine_ms=engine_ms,
            overhead_ms=max(0.0, latency_ms - engine_ms) + self.router.args.proxy_overhead_ms,
            replanned=self._let_in or self.course.replans > 0,
        )
        planning.experience.learn(job, planned, answered)
        if self.replica is not None:
            page, salt = planning.model.block_size, job.fields.get("cache_salt")
            # The next turn of a conversation begins with this answer.
            PREFIXES.remember(self.replica, chain([*job.prompt, *self._tokens], salt, page))

    def _ended(
        self, finish_reason: Literal["stop", "length"], completion_tokens: int, report: dict[str, Any], cut: bool
    ) -> End:
        job = self.job
        said = stepdial_object(self.planning, job, self.plan, self.course, report, completion_tokens, cut)
        # Where an answer goes on, what was there of it is part of the prompt.
        cached = min(report.get("cached_prompt_tokens", 0), len(job.prompt))
        return End(finish_reason, len(job.prompt), completion_tokens, cached, said)


RETRY = {"Retry-After": "1"}


class ReplicaFailed(Exception):
    """The engine stopped under a request."""
