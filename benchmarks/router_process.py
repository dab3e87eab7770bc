"""The router in a process of its own, as in the cluster: its planning takes no time from the engine's interpreter.

Planning, menus, histories and predictions are the product's (`deployments/planning.py`); the steps around them are
those of `deployments/answering.py` for one replica that never fails. Messages are pickled over a pair of sockets.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from multiprocessing.connection import Connection
from socket import socketpair
from typing import TYPE_CHECKING, Any

from deployments.experience import Answered
from deployments.openai_types import CompletionRequest
from deployments.planner import Refusal
from deployments.planning import Planning
from deployments.process import for_serving
from deployments.settings import AppArgs
from deployments.tiers import TIERS, Tier
from engine.request import parse_options

if TYPE_CHECKING:
    from benchmarks.promise_trace import Request
    from deployments.job import Job
    from deployments.load import ReplicaLoad
    from deployments.planner import Planned
    from engine.plan import Plan, Rung

READY = "ready"
MOST_ASKED = 64
"""Questions at a time: of more, the sockets' buffers could fill in both directions, and both sides wait for ever."""
MOST_OPEN = 10_000
"""Plans that the router remembers until it hears of their answers; of what is cut off it never does."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How the answer to question `number` ended."""

    number: int
    answered: Answered


@dataclass(frozen=True, slots=True)
class Question:
    """A request as the router gets it.

    Attributes:
        fields: of its body. load: of the replica, None where it is the one of the question before.
        ended: answers that have ended since that one.
    """

    number: int
    fields: dict[str, Any]
    arrived_s: float
    load: ReplicaLoad | None
    ended: list[Ended]


@dataclass(frozen=True, slots=True)
class Offer:
    """A plan, with what the replica's last word needs to know.

    Attributes:
        reckoned: output tokens to reckon with. slo_ms, share: of the request's goal. checked: whether the replica may
            refuse it. overhead_ms: what the path adds.
    """

    number: int
    plan: Plan
    reckoned: int
    slo_ms: float | None
    share: float
    checked: bool
    overhead_ms: float


@dataclass(frozen=True, slots=True)
class Refusing:
    """No plan for question `number`; `status`: as over HTTP."""

    number: int
    status: int


class Router:
    """What runs in the router's process."""

    def __init__(self, model: str) -> None:
        self.planning = Planning(AppArgs(model=model, tiers=open_tiers()))
        self._loads: list[ReplicaLoad] = []
        self._open: dict[int, tuple[Job, Planned]] = {}

    def offer(self, question: Question) -> Offer | Refusing:
        """As `POST /v1/completions` would: a plan, or a refusal before any forward."""
        for ended in question.ended:
            self.learn(ended)
        if question.load is not None:
            self._loads = [question.load]
        planning, number = self.planning, question.number
        body = parse_options(CompletionRequest, question.fields)
        if not isinstance(body, CompletionRequest):
            raise TypeError("a completion was parsed as something else")
        job = planning.job(body, {}, f"request-{number}", question.arrived_s)
        planned = planning.plan(job, self._loads)
        if isinstance(planned, Refusal):
            return Refusing(number, planned.status)
        self._open[number] = job, planned
        if len(self._open) > MOST_OPEN:
            del self._open[next(iter(self._open))]
        goal = job.goal
        return Offer(
            number=number,
            plan=planned.plan,
            reckoned=planned.length.reckoned,
            slo_ms=goal.latency_slo_ms,
            share=goal.share,
            checked=goal.on_infeasible == "reject",
            overhead_ms=planning.experience.overhead_ms.value,
        )

    def learn(self, ended: Ended) -> None:
        """Remembers an answer: the path's overhead, its length, how right the prediction was."""
        known = self._open.pop(ended.number, None)
        if known is not None:
            self.planning.experience.learn(*known, ended.answered)

    def serve(self, connection: Connection) -> None:
        """Until the other side is gone."""
        with suppress(EOFError, ConnectionError):
            while True:
                question: Question = connection.recv()
                connection.send(self.offer(question))


class RouterProcess:
    """The other side: asks from a running event loop, one after another or many at once."""

    def __init__(self, model: str) -> None:
        mine, theirs = socketpair()
        with theirs:
            # Not `-m`: messages would be of `__main__`'s classes.
            start = "from benchmarks.router_process import main; main()"
            command = [sys.executable, "-c", start, model, str(theirs.fileno())]
            self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()])
        self._connection = Connection(mine.detach())
        # Its start is no part of what is measured.
        self._connection.recv()
        self._numbers = count()
        self._asked: dict[int, asyncio.Future[Offer | Refusing]] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turns = asyncio.Semaphore(MOST_ASKED)
        self._sent: ReplicaLoad | None = None
        self._ended: list[Ended] = []

    async def offer(self, request: Request, arrived_s: float, load: ReplicaLoad) -> Offer | Refusing:
        """The plan of a request that arrived at `arrived_s` (`time.perf_counter`)."""
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            loop.add_reader(self._connection.fileno(), self._hear)
            self._loop, self._turns = loop, asyncio.Semaphore(MOST_ASKED)
        async with self._turns:
            return await self._answer(request, arrived_s, load, loop)

    async def _answer(
        self, request: Request, arrived_s: float, load: ReplicaLoad, loop: asyncio.AbstractEventLoop
    ) -> Offer | Refusing:
        number = next(self._numbers)
        answer = self._asked[number] = loop.create_future()
        news = None if load is self._sent else load
        self._sent = load
        ended, self._ended = self._ended, []
        self._connection.send(Question(number, fields_of(request), arrived_s, news, ended))
        try:
            return await answer
        finally:
            self._asked.pop(number, None)

    def learn(self, number: int, answered: Answered) -> None:
        """Tells the router how the answer to its offer `number` ended, with the next question: in the cluster the
        stream that it passes on tells it, and nobody sends a message of its own."""
        self._ended.append(Ended(number, answered))

    def close(self) -> None:
        """Ends the process."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._connection.fileno())
        self._connection.close()
        self._process.wait()

    def _hear(self) -> None:
        try:
            message: Offer | Refusing = self._connection.recv()
        except (EOFError, ConnectionError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            gone = RuntimeError("the router's process has ended")
            for answer in self._asked.values():
                if not answer.done():
                    answer.set_exception(gone)
            return
        # Who asked may have been cut off meanwhile.
        asked = self._asked.get(message.number)
        if asked is not None and not asked.done():
            asked.set_result(message)


def open_tiers(tiers: Sequence[Tier] = TIERS) -> tuple[Tier, ...]:
    """The shipped tiers without a bound on how tight a request's own SLO may be: the benchmark sets SLOs by length."""
    free = {"tightest_latency_slo_ms": None, "tightest_ttft_slo_ms": None}
    return tuple(tier.model_copy(update=free) for tier in tiers)


def fields_of(request: Request) -> dict[str, Any]:
    """The body of `POST /v1/completions`."""
    fields: dict[str, Any] = {
        "model": "stepdial-tiny",
        "prompt": request.prompt,
        "max_tokens": request.max_tokens,
        "temperature": 0,
        "seed": 0,
        "service_tier": request.tier,
    }
    if request.slo_ms is not None:
        fields["latency_slo_ms"] = request.slo_ms
    if request.rung is not None:
        fields |= pin_of(request.rung)
    return fields


def pin_of(rung: Rung) -> dict[str, Any]:
    """The fields with which a request pins a rung."""
    if rung.block_length == 1:
        return {"decoding": rung.decoding.value}
    if not rung.is_diffusion:
        return {"decoding": rung.decoding.value, "block_length": rung.block_length}
    return {
        "decoding": rung.decoding.value,
        "block_length": rung.block_length,
        "refinement_steps": rung.refinement_steps,
        "threshold": rung.threshold,
        "audit": rung.audit,
    }


def main() -> None:
    """The router's process; its arguments are the checkpoint and the socket to talk over."""
    model, descriptor = sys.argv[1:]
    router = Router(model)
    for_serving(beside_an_engine=False)
    with Connection(int(descriptor)) as connection:
        connection.send(READY)
        router.serve(connection)
