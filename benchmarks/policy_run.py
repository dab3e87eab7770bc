"""Requests through one engine under one policy: at given times (open loop), or so many at a time (closed loop).

The client is a coroutine in the engine's process, so nothing but engine and policy is in a latency: it counts from the
moment a request was due, whatever became of earlier ones, to its last token.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any, TypeVar

import uvloop

from benchmarks.policies import Refused
from deployments.process import for_serving
from deployments.warm_up import warm_up
from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Delta, Finished
from engine.request import GenerationOptions

if TYPE_CHECKING:
    from benchmarks.policies import Policy
    from benchmarks.promise_trace import Arrival, Request
    from engine.plan import Plan, PlanEntry

IDLE_WAIT_S = 10.0
LEAST_WAIT_S = 0.005
"""Short beside a window; a few hundred looks at the clock a second at most."""
T = TypeVar("T")


@dataclass(slots=True)
class Outcome:
    """What became of one request.

    Attributes:
        due_s: when it was due, seconds after the start. late_start_ms: how late the client was.
        own_ms: from the question to the policy's decision. refused: status of a refusal.
        latency_ms, first_ms: from when it was due; None where nothing came (refused, or cut off at the end of the run).
        right: whether the text is the answer. tokens: output tokens that came. accelerator_ms: of the report.
    """

    request: Request
    due_s: float
    late_start_ms: float = 0.0
    own_ms: float = 0.0
    refused: int | None = None
    plan: Plan | None = None
    predicted_p95_ms: float | None = None
    first_ms: float | None = None
    latency_ms: float | None = None
    right: bool = False
    tokens: int = 0
    accelerator_ms: float = 0.0
    entries: list[PlanEntry] = field(default_factory=list)

    @property
    def in_time(self) -> bool:
        """Whether it was answered within its SLO; without one, whether it was answered."""
        slo_ms = self.request.slo_ms
        return self.latency_ms is not None and (slo_ms is None or self.latency_ms <= slo_ms)

    @property
    def good(self) -> bool:
        """Right and in time: what goodput counts."""
        return self.right and self.in_time


def new_engine(model: Path, kv_tokens: int, cost_model: str | None = None, prefix_reuse: bool = False) -> Engine:
    """An engine with one torch thread that knows nothing yet but `cost_model`, the saved text of one; its loop runs.

    Requests of a benchmark repeat prompts, which real ones do not; so prefixes are not shared unless asked for.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = None
        if cost_model is not None:
            file = Path(folder) / "cost_model.json"
            file.write_text(cost_model, encoding="utf-8")
        config = EngineConfig(
            dtype="float32",
            threads=1,
            prefix_reuse=prefix_reuse,
            kv_tokens=kv_tokens,
            cost_model=None if file is None else str(file),
        )
        engine = Engine.from_pretrained(model, config)
    # What it learns is not saved: the next engine starts as this one did.
    engine.config = config.model_copy(update={"cost_model": None})
    return engine


def warm_engines(model: Path, kv_tokens: int, number: int) -> list[Engine]:
    """So many engines that run, and know what the first of them has learned of forwards' cost by warming up."""
    first = new_engine(model, kv_tokens)
    warm_up(first)
    for_serving(beside_an_engine=True)
    cost_model = json.dumps(first.cost_model.to_dict())
    engines = [first, *(new_engine(model, kv_tokens, cost_model) for _ in range(number - 1))]
    for engine in engines:
        engine.start()
    return engines


def in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Runs a coroutine on uvloop, as the cluster does."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


async def serve(
    engine: Engine, policy: Policy, outcome: Outcome, due_at_s: float, told: Callable[[int], None] | None = None
) -> None:
    """One request from the decision to its last token; fills in `outcome`.

    Args:
        due_at_s: when it was due, on the engine's clock. told: hears of new tokens as they come.
    """
    request, clock = outcome.request, engine.core.clock
    begun = perf_counter()
    late_s = clock() - due_at_s
    outcome.late_start_ms = late_s * 1e3
    decision = await policy.decide(request, begun - late_s)
    outcome.own_ms = (perf_counter() - begun) * 1e3
    if isinstance(decision, Refused):
        outcome.refused = decision.status
        return
    outcome.plan, outcome.predicted_p95_ms = decision.plan, decision.predicted_p95_ms
    options = GenerationOptions(
        max_tokens=request.max_tokens,
        temperature=0,
        seed=0,
        ignore_eos=request.ignore_eos,
        latency_slo_ms=decision.latency_slo_ms,
    )
    text = ""
    async with aclosing(engine.generate(request.prompt, options, plan=decision.plan)) as stream:
        async for event in stream:
            if isinstance(event, Delta):
                if outcome.first_ms is None:
                    outcome.first_ms = (clock() - due_at_s) * 1e3
                text += event.text
                outcome.tokens += len(event.token_ids)
                if told is not None:
                    told(len(event.token_ids))
            else:
                latency_ms = (clock() - due_at_s) * 1e3
                _finish(outcome, event, text, latency_ms)
                # The other answers that ended in the same forward come first.
                await asyncio.sleep(0)
                policy.learn(request, event, latency_ms)


def _finish(outcome: Outcome, event: Finished, text: str, latency_ms: float) -> None:
    outcome.latency_ms = latency_ms
    outcome.right = text.strip() == outcome.request.answer.strip()
    outcome.accelerator_ms = event.report.accelerator_ms
    outcome.entries = event.report.plan


async def open_loop(engine: Engine, policy: Policy, arrivals: Sequence[Arrival], end_s: float) -> list[Outcome]:
    """Serves a trace; what is still open `end_s` seconds after the start is cut off and has no latency."""
    clock = engine.core.clock
    started = clock()
    outcomes = [Outcome(arrival.request, arrival.due_s) for arrival in arrivals]
    open_tasks: set[asyncio.Task[None]] = set()
    failures: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        open_tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            failures.append(error)

    for outcome in outcomes:
        due_at_s = started + outcome.due_s
        await asyncio.sleep(max(due_at_s - clock(), 0.0))
        task = asyncio.create_task(serve(engine, policy, outcome, due_at_s))
        open_tasks.add(task)
        task.add_done_callback(ended)
    left_s = started + end_s - clock()
    if open_tasks and left_s > 0:
        await asyncio.wait(set(open_tasks), timeout=left_s)
    await _cancel(open_tasks)
    if failures:
        raise failures[0]
    await until_idle(engine)
    return outcomes


@dataclass(frozen=True, slots=True)
class Window:
    """When a closed loop is measured, in seconds on the engine's clock.

    Attributes:
        warm_s: before it opens. seconds: how long it is open; longer, until at least `least_ended` have ended in it.
    """

    warm_s: float
    seconds: float
    least_ended: int = 0


@dataclass(slots=True)
class Closed:
    """A closed loop's window.

    Attributes:
        seconds: of the window. tokens: that came in it. ended: requests that ended in it, refused ones left out.
    """

    seconds: float
    tokens: int
    ended: list[Outcome]

    @property
    def tokens_per_s(self) -> float:
        return self.tokens / self.seconds


async def closed_loop(
    engine: Engine,
    policy: Policy,
    requests: Sequence[Request],
    concurrency: int,
    window: Window,
    before_end: Callable[[], Awaitable[None]] | None = None,
) -> Closed:
    """`concurrency` clients that ask for the next request as soon as they have their answer, over and over.

    `before_end`: the clients go on after the window until it returns.
    """
    clock = engine.core.clock
    numbers = count()
    ended: list[Outcome] = []
    tokens = 0
    opened: float | None = None

    def told(more: int) -> None:
        nonlocal tokens
        if opened is not None:
            tokens += more

    async def client() -> None:
        while True:
            number = next(numbers)
            # A number of its own, because a prompt may be open twice.
            request = replace(requests[number % len(requests)], index=number)
            outcome = Outcome(request, 0.0)
            await serve(engine, policy, outcome, clock(), told)
            if outcome.refused is not None:
                await asyncio.sleep(0.01)
            elif opened is not None:
                ended.append(outcome)

    clients = {asyncio.create_task(client()) for _ in range(concurrency)}
    try:
        await _while_running(clients, clock, window.warm_s)
        opened = clock()
        await _while_running(clients, clock, window.seconds)
        while len(ended) < window.least_ended:
            await _while_running(clients, clock, 0.02)
        # Taken before the clients are cancelled, which takes its time.
        closed = Closed(clock() - opened, tokens, list(ended))
        if before_end is not None:
            await before_end()
    finally:
        await _cancel(clients)
    await until_idle(engine)
    return closed


async def _while_running(tasks: set[asyncio.Task[None]], clock: Callable[[], float], seconds: float) -> None:
    """Waits; a client that dies ends the wait with its error."""
    until = clock() + seconds
    # The clock may stand still meanwhile (`benchmarks/turns.py`): then the shortest wait keeps this from spinning.
    while (left_s := until - clock()) > 0:
        done, _ = await asyncio.wait(tasks, timeout=max(left_s, LEAST_WAIT_S), return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.result()


async def _cancel(tasks: set[asyncio.Task[None]]) -> None:
    for task in list(tasks):
        task.cancel()
    for task in list(tasks):
        with suppress(asyncio.CancelledError):
            await task


async def until_idle(engine: Engine) -> None:
    """Waits until the engine has dropped what was cancelled. Raises TimeoutError when it does not."""
    until = perf_counter() + IDLE_WAIT_S
    while engine.present():
        if perf_counter() > until:
            raise TimeoutError(f"the engine still has {len(engine.present())} sequences after {IDLE_WAIT_S} s")
        await asyncio.sleep(0.005)


def cycle_of(requests: Iterator[Request], size: int) -> list[Request]:
    """The first `size` requests, to be asked over and over."""
    return [next(requests) for _ in range(size)]
