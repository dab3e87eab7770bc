"""What the router adds over a bare Serve stream: same cluster, same replica, same engine work, alternating.

`python -m benchmarks.router_overhead` prints a table and writes `benchmarks/results/router_overhead.json`. Four paths:
`one_chunk` is an ingress that answers one chunk by itself (HTTP alone); `bare` is the least that streams from a replica
(an ingress that passes a fixed request on and its chunks back); `stepdial` is `/v1/completions` with its checks, plan,
admission, OpenAI's events and the answer's report; `own_port` the same at the router's own port, without Serve's proxy.
Every answer is one block of 32 tokens in two denoise steps.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

from deployments.environment import cluster_environment

os.environ.update(cluster_environment(RAY_USAGE_STATS_ENABLED="0"))  # before Ray and torch are imported

import httpx
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import StreamingResponse

from benchmarks.command import command_parser, parsed, write_report
from deployments.app import build
from deployments.history import quantile
from deployments.messages import Piece, ReplicaRequest
from deployments.prediction import Size
from deployments.serve_local import free_port
from deployments.settings import AppArgs
from engine.plan import Plan, diffusion

ROUNDS = 300
WARM_UP = 30
TOKENS = 32
SHARES = (10, 50, 95)
PROMPT = [1, 300, 301, 302]


class Bare:
    """The least that streams from a replica over HTTP."""

    def __init__(self) -> None:
        handle = serve.get_deployment_handle("Replica", "stepdial")
        self.replica = handle.options(stream=True)
        plan = Plan(ladder=(diffusion(TOKENS, 2),))
        options = {"max_tokens": TOKENS, "temperature": 0, "ignore_eos": True, "seed": 0}
        self.request = ReplicaRequest("bare", PROMPT, options, plan.to_dict(), Size(len(PROMPT), TOKENS))

    async def __call__(self, request: Request) -> StreamingResponse:
        if request.url.path.endswith("one_chunk"):
            return StreamingResponse(self.one_chunk(), media_type="text/event-stream")
        return StreamingResponse(self.stream(), media_type="text/event-stream")

    async def one_chunk(self) -> AsyncIterator[str]:
        yield "data: 1\n\n"

    async def stream(self) -> AsyncIterator[str]:
        async for message in self.replica.generate.remote(self.request):
            if isinstance(message, Piece):
                yield f"data: {message.text}\n\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Deploys, measures in turn, prints and writes."""
    options = parsed(command_parser("router_overhead", __doc__), arguments)
    port, own_port = free_port(), free_port()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
        quiet = {"enable_access_log": False, "log_level": "WARNING"}
        args = AppArgs(replica_cpus=0, router_cpus=0, kv_tokens=32_768, router_port=own_port)
        serve.run(build(args), name="stepdial", route_prefix="/", logging_config=quiet)
        bare = serve.deployment(Bare, name="Bare", ray_actor_options={"num_cpus": 0}, max_ongoing_requests=1000)
        serve.run(bare.bind(), name="bare", route_prefix="/bare", logging_config=quiet)
        report = measure(f"http://127.0.0.1:{port}", f"http://127.0.0.1:{own_port}")
    finally:
        serve.shutdown()
        ray.shutdown()
    write_report(options, report)
    print_table(report)


def measure(url: str, own_url: str) -> dict[str, Any]:
    """Total latency and time to the first text of each path, milliseconds."""
    body = {
        "model": "stepdial-tiny", "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True,
        "seed": 0, "stream": True, "decoding": "diffusion", "block_length": TOKENS, "refinement_steps": 2,
    }  # fmt: skip
    paths: dict[str, tuple[str, str, dict[str, Any] | None]] = {
        "one_chunk": ("GET", f"{url}/bare/one_chunk", None),
        "bare": ("GET", f"{url}/bare/stream", None),
        "stepdial": ("POST", f"{url}/v1/completions", body),
        "own_port": ("POST", f"{own_url}/v1/completions", body),
    }
    load_before = os.getloadavg()[0]
    totals: dict[str, list[float]] = {name: [] for name in paths}
    firsts: dict[str, list[float]] = {name: [] for name in paths}
    with httpx.Client(timeout=30) as client:
        for index in range(WARM_UP + ROUNDS):
            for name, (method, address, json_body) in paths.items():
                total_ms, first_ms = one_call(client, method, address, json_body)
                if index >= WARM_UP:
                    totals[name].append(total_ms)
                    firsts[name].append(first_ms)
    rows = {
        name: {
            f"{what}_p{share}_ms": quantile(values[name], share / 100)
            for what, values in (("total", totals), ("first", firsts))
            for share in SHARES
        }
        for name in paths
    }
    added = {
        name: {key: rows[name][key] - rows["bare"][key] for key in rows["bare"]} for name in ("stepdial", "own_port")
    }
    return {
        "load_average_before": load_before,
        "rounds": ROUNDS,
        "paths": rows,
        "added_by_the_router": added["stepdial"],
        "added_at_its_own_port": added["own_port"],
    }


def one_call(client: httpx.Client, method: str, url: str, body: dict[str, Any] | None) -> tuple[float, float]:
    """(total, first bytes of the body) in milliseconds."""
    begun = time.perf_counter()
    first = 0.0
    with client.stream(method, url, json=body) as answer:
        answer.raise_for_status()
        for _ in answer.iter_raw():
            first = first or time.perf_counter()
    return (time.perf_counter() - begun) * 1e3, (first - begun) * 1e3


def print_table(report: dict[str, Any]) -> None:
    rows = {
        **report["paths"],
        "added by the router": report["added_by_the_router"],
        "added at its own port": report["added_at_its_own_port"],
    }
    print(f"{'ms':22}" + "".join(f"{key.removesuffix('_ms').replace('_', ' '):>12}" for key in rows["bare"]))
    for name, row in rows.items():
        print(f"{name:22}" + "".join(f"{value:12.2f}" for value in row.values()))
    print(f"load average of the machine before: {report['load_average_before']}")


if __name__ == "__main__":
    main()
