"""A burst starts a second replica, its end stops one, and the streams that it held lose nothing."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from deployments.app import build
from deployments.settings import AppArgs
from tests.e2e.conftest import wait_until_ready
from tests.e2e.test_failures import eventually

MODEL = "stepdial-tiny"
TARGET_S = 20.0
BURST, KEPT = 10, 4
ASKED: dict[str, Any] = {"model": MODEL, "temperature": 0, "seed": 1, "stream": True, "ignore_eos": True}
NARROW: dict[str, Any] = {"decoding": "ar", "max_tokens": 800, "min_tokens": 800}
"""Seconds of one sequence: `KEPT` of them are far less work than a replica may have."""
WIDE: dict[str, Any] = {
    "decoding": "diffusion", "block_length": 8, "refinement_steps": 8, "max_tokens": 3600, "min_tokens": 3600,
}  # fmt: skip
"""More forwards than tokens, so more work than a replica may have, however fast the machine is."""
PROMISED = {"latency_slo_ms": 3_600_000}
"""For streams that stay where they are, since they were promised to be in time there."""


@pytest.fixture(scope="module")
def growing(url: str) -> Iterator[str]:
    args = AppArgs(
        min_replicas=1, max_replicas=2, replica_cpus=0, router_cpus=0, health_period_s=1, kv_tokens=131_072,
        target_queue_s=TARGET_S, upscale_delay_s=0.5, downscale_delay_s=0.5, metrics_interval_s=0.5,
        routing_stats_period_s=0.2,
        # Far less than the kept streams still need: the drained replica dies under them.
        drain_s=0.5,
    )  # fmt: skip
    serve.run(build(args), name="growing", route_prefix="/growing")
    wait_until_ready(f"{url}/growing", 1)
    yield f"{url}/growing"
    serve.delete("growing")


def replicas(url: str) -> int:
    count: int = httpx.get(f"{url}/ready", timeout=10).json()["replicas"]
    return count


def running() -> int:
    """Replicas that Serve itself calls running."""
    states = serve.status().applications["growing"].deployments["Replica"].replica_states
    return sum(count for state, count in states.items() if state == "RUNNING")


def read(
    url: str,
    prompt: list[int],
    mode: dict[str, Any],
    stop: threading.Event | None = None,
    begun: threading.Event | None = None,
) -> tuple[str, str, dict[str, Any]]:
    """Reads a stream to its end, or until `stop`: (its first replica, its text, what it said of itself).

    `begun` is set once a replica has it.
    """
    text, said = "", {}
    body = {**ASKED, **mode, "prompt": prompt}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=300) as answer:
        assert answer.status_code == 200, answer.read()
        if begun is not None:
            begun.set()
        for line in answer.iter_lines():
            if stop is not None and stop.is_set():
                break
            if line.startswith("data: {"):
                event = json.loads(line.removeprefix("data: "))
                assert "error" not in event, event
                text += event["choices"][0]["text"] if event["choices"] else ""
                said = event.get("stepdial", said)
    return answer.headers["x-stepdial-replica"], text, said


def read_on(
    url: str, prompt: list[int], stopped: threading.Event, begun: threading.Event
) -> list[tuple[str, str, dict[str, Any]]]:
    """Reads streams one after the other, all to their ends, until `stopped`: however fast the machine, one is open."""
    answers = []
    while not stopped.is_set():
        answers.append(read(url, prompt, NARROW, begun=begun))
    return answers


def gauges(url: str) -> dict[str, float]:
    """The autoscaler's decision as /metrics has it; values with a tier are summed."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10).text):
        for sample in family.samples:
            if sample.name.startswith("stepdial_autoscaling_"):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


@pytest.mark.long
def test_a_burst_starts_a_replica_and_its_end_stops_one_under_open_streams(growing: str) -> None:
    over, stopped = threading.Event(), threading.Event()
    with ThreadPoolExecutor(BURST + KEPT) as pool, ExitStack() as ends:
        # Whatever fails: the pool waits for its streams.
        ends.callback(over.set)
        ends.callback(stopped.set)
        burst = [pool.submit(read, growing, [1, 200 + index], WIDE | PROMISED, over) for index in range(BURST)]
        grown = eventually(lambda: running() == 2 and replicas(growing) == 2, 120)
        assert grown, "the burst did not start a second replica"
        said = gauges(growing)
        # The first replica is full, so the first of these go to the new one; later ones go to both.
        begun = [threading.Event() for _ in range(KEPT)]
        kept = [pool.submit(read_on, growing, [1, 300 + index], stopped, one) for index, one in enumerate(begun)]
        assert all(one.wait(30) for one in begun)
        over.set()
        for done in burst:
            done.result()
        assert said["stepdial_autoscaling_wanted_replicas"] == 2
        assert said["stepdial_autoscaling_max_replicas"] == 2
        assert said["stepdial_autoscaling_work_seconds"] > 0
        assert said["stepdial_autoscaling_need_replicas"] > 0
        assert eventually(lambda: running() == 1, 300), "the second replica was not stopped"
        stopped.set()
        answers = [done.result() for done in kept]
        alone = list(pool.map(lambda index: read(growing, [1, 300 + index], NARROW), range(KEPT)))
    assert any("continued after" in said["reason"] for streams in answers for _, _, said in streams)
    for streams, (_, text, _) in zip(answers, alone, strict=True):
        assert {said for _, said, _ in streams} == {text}
    assert eventually(lambda: gauges(growing)["stepdial_autoscaling_wanted_replicas"] == 1, 5)
    assert replicas(growing) == 1
