"""Policies for one engine: which plan a request gets, whether the engine knows its deadline, whether it is let in.

The simple ones are what Stepdial is compared with. They serve first come, first served: the engine hears of no deadline
and nobody is refused, unless `Admitted` wraps them. Two take the idea of a paper, on this engine and in this setting:
`ByDeadline` that of DiLaServe (arXiv 2606.29094, a confidence threshold per request, adapted to its deadline under a
deadline-aware scheduler) and `ByLoad` that of Optimus (arXiv 2605.24832, the granularity of decoding follows the load,
from a profile measured at start).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TYPE_CHECKING, Protocol

from deployments.history import OutputLengths
from deployments.load import LoadMeter, ReplicaLoad
from deployments.prediction import predict_all
from deployments.prediction_tables import LoadTable, RungTable
from engine.admission import Newcomer
from engine.plan import Plan, Rung

if TYPE_CHECKING:
    from benchmarks.promise_trace import Request
    from deployments.history import Length
    from engine.engine import Engine
    from engine.events import Finished

PRIOR_OUTPUT_TOKENS = 64
LOAD_MAX_AGE_S = 0.05
"""As between a replica and its routers. Where nobody is refused the queue grows, and reading it costs ever more."""
Profile = Mapping[Rung, Mapping[int, float]]
"""Measured tokens per second of each rung by the number of sequences that run."""


@dataclass(frozen=True, slots=True)
class Served:
    """A request that is let in.

    Attributes:
        latency_slo_ms: what the engine is told, from its own arrival; None = it knows of no deadline.
        predicted_p95_ms: arrival to the last byte, where the policy predicts; None where it does not.
    """

    plan: Plan
    latency_slo_ms: float | None = None
    predicted_p95_ms: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that is not let in. `status`: as over HTTP, 400 = never, 429 = not under this load."""

    status: int


Decision = Served | Refused


class Policy(Protocol):
    """Decides about requests as they arrive, and may learn from how they ended.

    Attributes:
        name: in tables. learns: whether it is worth warming up.
    """

    name: str
    learns: bool

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        """What becomes of a request that arrived at `arrived_s` on `time.perf_counter`'s clock."""
        ...

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        """Hears of the end of a request that was served; `latency_ms` from its arrival."""
        ...

    def close(self) -> None:
        """Ends what the policy runs beside the engine."""
        ...


class Simple:
    """A policy that runs nothing beside the engine, and learns nothing."""

    learns = False

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        """Nothing to learn."""

    def close(self) -> None:
        """Nothing to end."""


class Fixed(Simple):
    """One rung for everybody."""

    def __init__(self, name: str, rung: Rung) -> None:
        self.name = name
        self.plan = Plan(ladder=(rung,), reason=name)

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        return Served(self.plan)


class Pinned(Simple):
    """The same way as another policy's, with a rung that the client pins."""

    def __init__(self, name: str, rung: Rung, policy: Policy) -> None:
        self.name = name
        self.rung = rung
        self.policy = policy

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        return await self.policy.decide(replace(request, rung=self.rung), arrived_s)

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        self.policy.learn(request, finished, latency_ms)


class ByLoad(Simple):
    """Of several rungs the one that gave most tokens per second, at start, with about as many sequences as run now."""

    def __init__(self, name: str, engine: Engine, profile: Profile) -> None:
        """Raises ValueError for a profile without rungs or without loads."""
        if not profile or not all(profile.values()):
            raise ValueError(
                f"the profile of {name!r} is empty; it needs tokens per second of at least one rung and load"
            )
        self.name = name
        self.engine = engine
        self._best = fastest_by_load(profile)
        self._plans = {rung: Plan(ladder=(rung,), reason=name) for rung in profile}

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        present = len(self.engine.present()) + 1
        nearest = min(self._best, key=lambda count: abs(math.log(count / present)))
        return Served(self._plans[self._best[nearest]])


def fastest_by_load(profile: Profile) -> dict[int, Rung]:
    """The rung of most tokens per second at each number of sequences that all rungs were measured at."""
    counts = set.intersection(*(set(speeds) for speeds in profile.values()))
    return {count: max(profile, key=lambda rung: profile[rung][count]) for count in sorted(counts)}


class ByDeadline(Simple):
    """The first of several rungs (best first) that is predicted to meet the deadline under the present load.

    The engine knows the deadlines and serves the most urgent first. Where no rung is fast enough the last one is used;
    a request without a deadline gets the first. Nobody is refused.
    """

    learns = True

    def __init__(self, name: str, engine: Engine, rungs: Sequence[Rung]) -> None:
        self.name = name
        self._plans = [Plan(ladder=(rung,), reason=name) for rung in rungs]
        self._rungs = RungTable(rungs)
        self._lengths = OutputLengths(PRIOR_OUTPUT_TOKENS)
        self._loads = Loads(engine, rungs)
        self._table: LoadTable | None = None

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        if request.slo_ms is None:
            return Served(self._plans[0])
        left_ms = request.slo_ms - (perf_counter() - arrived_s) * 1e3
        length = expected_length(self._lengths, request)
        plan = replace(self._plan_within(request, length, left_ms), expected_tokens=length.reckoned)
        return Served(plan, max(left_ms, 1.0))

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        observe_length(self._lengths, request, finished)

    def _plan_within(self, request: Request, length: Length, left_ms: float) -> Plan:
        now_s = perf_counter()
        if self._table is None or now_s - self._table.loads[0].at_s > LOAD_MAX_AGE_S:
            self._table = LoadTable([self._loads.now({})])
        count, prompt_tokens = len(self._plans), len(request.prompt)
        predictions = predict_all(
            self._rungs, self._table, prompt_tokens, [0], [length.median] * count, [length.reckoned] * count
        )
        in_time = (predictions.p95_s[:, 0] * 1e3 <= left_ms).nonzero()[0]
        return self._plans[int(in_time[0]) if in_time.size else -1]


class Admitted(Simple):
    """Another policy's plans, with deadlines that the engine knows and its last word on who is let in."""

    learns = True

    def __init__(self, policy: Policy, engine: Engine) -> None:
        self.name = f"{policy.name}, with admission"
        self.policy = policy
        self.engine = engine
        self._lengths = OutputLengths(PRIOR_OUTPUT_TOKENS)

    async def decide(self, request: Request, arrived_s: float) -> Decision:
        decision = await self.policy.decide(request, arrived_s)
        if isinstance(decision, Refused) or request.slo_ms is None:
            return decision
        left_ms = request.slo_ms - (perf_counter() - arrived_s) * 1e3
        length = expected_length(self._lengths, request)
        plan = replace(decision.plan, expected_tokens=length.reckoned)
        newcomer = Newcomer(plan, len(request.prompt), length.reckoned, left_ms / 1e3)
        if left_ms <= 0 or self.engine.rung_for(newcomer) is None:
            return Refused(429)
        return Served(plan, left_ms, decision.predicted_p95_ms)

    def learn(self, request: Request, finished: Finished, latency_ms: float) -> None:
        self.policy.learn(request, finished, latency_ms)
        observe_length(self._lengths, request, finished)


class Loads:
    """An engine's load as a replica reports it."""

    def __init__(self, engine: Engine, rungs: Sequence[Rung]) -> None:
        """`rungs`: those whose measured tokens per forward are of interest."""
        self._engine = engine
        self._meter = LoadMeter("engine", engine.config.prefill_chunk, rungs)

    def now(self, latency_tail: dict[str, float]) -> ReplicaLoad:
        """The present load; `latency_tail`: p95 of actual over predicted latency by mode."""
        return self._meter.read(self._engine.stats(), perf_counter(), latency_tail)


def expected_length(lengths: OutputLengths, request: Request) -> Length:
    """Output tokens to expect of a request, from its bound and from what was seen."""
    return lengths.expect(len(request.prompt), request.max_tokens, request.tier)


def observe_length(lengths: OutputLengths, request: Request, finished: Finished) -> None:
    """Counts an answer's length."""
    seen = lengths.observe if finished.finish_reason == "stop" else lengths.observe_cut
    seen(len(request.prompt), finished.report.completion_tokens, request.tier)
