"""What planning costs: microseconds per plan with 8 replicas, and the router's own CPU per refusal.

`python -m benchmarks.planner_overhead` prints a table and writes `benchmarks/results/planner_overhead.json`. Menus,
histograms and loads are those of the model that ships; nothing is sent anywhere. `plan` is the planner alone
(`make_plan`); `router` is a request's whole way through the router up to a plan or to a refusal's body: JSON, checks,
chat template, tokens, menu, plan. CPU is process time, so other processes of the machine do not count.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.command import command_parser, parsed, write_report
from deployments.errors import refused
from deployments.history import quantile
from deployments.load import ReplicaLoad
from deployments.openai_types import ChatCompletionRequest
from deployments.planner import Planned, Refusal, make_plan
from deployments.planning import Planning
from deployments.prediction_tables import policy_name
from deployments.settings import AppArgs
from engine.request import parse_options

if TYPE_CHECKING:
    from engine.plan import Rung

REPLICAS = 8
ROUNDS = 2000
WARM_UP = 200
MESSAGES = [{"role": "user", "content": "Reverse this list:\nhouse\nbottle\nbridge\nred\nflute"}]
CASES: dict[str, dict[str, Any]] = {
    "no SLO": {},
    "loose SLO": {"latency_slo_ms": 30_000},
    "tight SLO": {"latency_slo_ms": 0.0},
    "diffusion with an SLO": {"decoding": "diffusion", "latency_slo_ms": 30_000},
    "refused": {"latency_slo_ms": 1},
}
"""What the request says besides its messages; a `tight SLO` is set to what the fastest rung alone can meet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, prints and writes."""
    options = parsed(command_parser("planner_overhead", __doc__), arguments)
    planning = Planning(AppArgs())
    loads = busy_replicas(planning.quality.ladder)
    rows = {name: measure(planning, loads, body_of(planning, loads, fields)) for name, fields in CASES.items()}
    write_report(options, {"replicas": REPLICAS, "rounds": ROUNDS, "microseconds": rows})
    print(f"{'us, with ' + str(REPLICAS) + ' replicas':24}" + "".join(f"{name:>18}" for name in rows["no SLO"]))
    for name, row in rows.items():
        print(f"{name:24}" + "".join(f"{value:18.1f}" for value in row.values()))


def busy_replicas(ladder: Sequence[Rung]) -> list[ReplicaLoad]:
    """Replicas with about the load of a busy minute and what they measured of `ladder`, no two alike."""
    rng = random.Random(0)
    names = [policy_name(rung) for rung in ladder]
    return [
        ReplicaLoad(
            f"replica-{index}",
            queue_s=(queue_s := rng.uniform(0.5, 2.0)),
            running=(count := rng.randrange(4, 24)),
            sequences=count,
            slots=float(count * 8),
            context=float(count * 150),
            timed_s=0.4 * queue_s,
            timed_others_s=count * 4e-4,
            timed_room_s=rng.uniform(5e-3, 2e-2),
            step_s=rng.uniform(8e-3, 2e-2),
            timed_share=rng.uniform(0.2, 0.6),
            latency_tail={"ar": 1.1, "diffusion": 1.2, "self_speculation": 1.2},
            tokens_per_forward={name: rng.uniform(1.0, 6.0) for name in names},
        )
        for index in range(REPLICAS)
    ]


def body_of(planning: Planning, loads: list[ReplicaLoad], fields: dict[str, Any]) -> bytes:
    """The request's body; a latency of 0 becomes the smallest that is feasible."""
    body = {"model": "stepdial-tiny", "messages": MESSAGES, "max_tokens": 64, **fields}
    if body.get("latency_slo_ms") == 0:
        outcome = decide(planning, loads, json.dumps({**body, "latency_slo_ms": 1}).encode())
        if not isinstance(outcome, Refusal) or outcome.smallest_feasible_slo_ms is None:
            raise RuntimeError("an SLO of 1 ms was not refused with one that is feasible")
        body["latency_slo_ms"] = outcome.smallest_feasible_slo_ms
    return json.dumps(body).encode()


def decide(planning: Planning, loads: list[ReplicaLoad], body: bytes) -> Planned | Refusal:
    """A request's way through the router, from its body to a plan or a refusal."""
    parsed = parse_options(ChatCompletionRequest, json.loads(body))
    if not isinstance(parsed, ChatCompletionRequest):
        raise TypeError("a chat was parsed as something else")
    job = planning.job(parsed, {}, "benchmark", time.perf_counter())
    outcome = planning.plan(job, loads)
    if isinstance(outcome, Refusal):
        json.dumps(refused(outcome).body())
    return outcome


def measure(planning: Planning, loads: list[ReplicaLoad], body: bytes) -> dict[str, float]:
    """p50 and p95 of the planner alone, and mean CPU of the whole way, microseconds."""
    parsed = parse_options(ChatCompletionRequest, json.loads(body))
    if not isinstance(parsed, ChatCompletionRequest):
        raise TypeError("a chat was parsed as something else")
    ask = planning.ask(planning.job(parsed, {}, "benchmark", time.perf_counter()))
    plans_us = [each_us(lambda: make_plan(ask, loads)) for _ in range(WARM_UP + ROUNDS)][WARM_UP:]
    for _ in range(WARM_UP):
        decide(planning, loads, body)
    begun_ns = time.process_time_ns()
    for _ in range(ROUNDS):
        decide(planning, loads, body)
    whole_us = (time.process_time_ns() - begun_ns) / ROUNDS / 1e3
    return {"plan p50": quantile(plans_us, 0.5), "plan p95": quantile(plans_us, 0.95), "router CPU": whole_us}


def each_us(work: Callable[[], object]) -> float:
    begun_ns = time.perf_counter_ns()
    work()
    return (time.perf_counter_ns() - begun_ns) / 1e3


if __name__ == "__main__":
    main()
