"""Two routers that plan at once from old pictures, in front of two replicas, and API keys at their door."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from ray import serve

from deployments.app import build
from deployments.keys import ApiKey
from deployments.messages import Piece, ReplicaRequest
from deployments.prediction import Size
from deployments.settings import AppArgs
from engine.plan import Plan, diffusion
from tests.e2e.conftest import wait_until_ready

MODEL = "stepdial-tiny"
SECRET = "sk-two-routers"
PROMPT = [1, *range(300, 492)]
BODY = {"model": MODEL, "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": True, "seed": 1}
CROWD = 24


@pytest.fixture(scope="module")
def pair(url: str) -> Iterator[str]:
    """An application of its own, whose routers hear of a replica's load only by the streams that they read."""
    args = AppArgs(
        routers=2, min_replicas=2, max_replicas=2, replica_cpus=0, router_cpus=0, drain_s=1, kv_tokens=65_536,
        routing_stats_period_s=60,
        api_keys=(ApiKey(name="test", sha256=hashlib.sha256(SECRET.encode()).hexdigest()),),
    )  # fmt: skip
    serve.run(build(args), name="pair", route_prefix="/pair")
    wait_until_ready(f"{url}/pair", 2)
    yield f"{url}/pair"
    serve.delete("pair")


@pytest.fixture
def caller(pair: str) -> Iterator[httpx.Client]:
    headers = {"authorization": f"Bearer {SECRET}"}
    # No connection is kept, so that the proxy may give every request to either router.
    with httpx.Client(base_url=pair, headers=headers, timeout=60) as client:
        yield client


def complete(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/completions", json={**BODY, **fields})


def replans(client: httpx.Client) -> float:
    """Plans that replicas refused, over both routers: whichever answers tells its own."""
    seen: dict[str, float] = {}
    for _ in range(24):
        for family in text_string_to_metric_families(client.get("/metrics").text):
            for sample in family.samples:
                if sample.name == "stepdial_replans_total":
                    seen[sample.labels["router"]] = sample.value
    assert len(seen) == 2, "both routers serve"
    return sum(seen.values())


def test_without_a_known_key_nothing_is_answered(pair: str) -> None:
    for headers in ({}, {"authorization": "Bearer wrong"}):
        for path in ("completions", "chat/completions", "plan"):
            answer = httpx.post(f"{pair}/v1/{path}", json=BODY, headers=headers, timeout=30)
            assert answer.status_code == 401
            assert answer.json()["error"]["code"] == "invalid_api_key"
            assert answer.headers["www-authenticate"] == "Bearer"
        assert httpx.get(f"{pair}/v1/models", headers=headers, timeout=30).status_code == 401
    assert httpx.get(f"{pair}/ready", timeout=30).status_code == 200
    assert httpx.get(f"{pair}/metrics", timeout=30).status_code == 200


def test_many_at_once_are_answered_or_told_what_is_feasible(caller: httpx.Client) -> None:
    asked_ms = 3 * complete(caller, latency_slo_ms=1).json()["error"]["smallest_feasible_slo_ms"]
    with ThreadPoolExecutor(24) as pool:
        answers = list(pool.map(lambda seed: complete(caller, seed=seed, latency_slo_ms=asked_ms), range(48)))
    statuses = [answer.status_code for answer in answers]
    # 400 where the machine itself got so slow meanwhile that an idle replica could not either.
    assert set(statuses) <= {200, 400, 429}
    assert 200 in statuses
    for answer in answers:
        if answer.status_code == 200:
            assert answer.json()["usage"]["completion_tokens"] == 32
        else:
            assert answer.json()["error"]["smallest_feasible_slo_ms"] > asked_ms
        if answer.status_code == 429:
            assert int(answer.headers["retry-after"]) >= 1


def test_a_replica_that_refuses_sends_the_request_to_the_next_best(caller: httpx.Client) -> None:
    """Both routers know a replica as idle, by their own last stream; from elsewhere it is given more promises to keep
    than it has time for, so it lets nobody in.
    """
    known = [complete(caller).json()["stepdial"]["replica"] for _ in range(8)]
    crowded = known[-1]
    # Enough alone, and far too little beside a crowd.
    slo_ms = 1.3 * complete(caller, latency_slo_ms=1).json()["error"]["smallest_feasible_slo_ms"]
    before = replans(caller)
    handle = serve.get_deployment_handle("Replica", "pair").options(stream=True)
    plan = Plan(ladder=(diffusion(32, 32),), expected_tokens=960).to_dict()
    asked = {"max_tokens": 960, "ignore_eos": True, "temperature": 0, "seed": 0}
    menu = caller.post("/v1/plan", json={**BODY, **asked, "decoding": "diffusion", "refinement_steps": 32}).json()
    # Kept if all of the crowd rides in every forward: hopeless deadlines would be given up and bind nobody.
    options = {**asked, "latency_slo_ms": 0.7 * CROWD * menu["rungs"][0]["predicted_p95_ms"]}
    crowd = [
        handle.generate.remote(
            ReplicaRequest(f"crowd-{index}", [1, 200 + index], options, plan, Size(2, 960), ranked=(crowded,))
        )
        for index in range(CROWD)
    ]
    try:
        first = next(iter(crowd[0]))
        assert isinstance(first, Piece)
        assert first.load["replica"] == crowded
        answers = [complete(caller, latency_slo_ms=slo_ms) for _ in range(8)]
    finally:
        for stream in crowd:
            stream.cancel()
    assert {answer.status_code for answer in answers} <= {200, 400, 429}
    served = [answer.json()["stepdial"] for answer in answers if answer.status_code == 200]
    moved = [said for said in served if "planned again after a replica refused" in said["reason"]]
    assert moved, "no router planned for the crowded replica, or none went on to the other"
    assert crowded not in {said["replica"] for said in moved}
    assert replans(caller) >= before + len(moved)
