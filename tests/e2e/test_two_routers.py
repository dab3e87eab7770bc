"""Two routers that plan at once from old pictures, in front of two replicas, and API keys at their door."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
import ray
from ray import serve

from deployments.app import build
from deployments.keys import ApiKey
from deployments.messages import NotInTime, ReplicaRequest
from deployments.prediction import Size
from deployments.settings import AppArgs
from engine.plan import AR, Plan
from tests.e2e.conftest import wait_until_ready

MODEL = "stepdial-tiny"
SECRET = "sk-two-routers"
PROMPT = [1, *range(300, 492)]
BODY = {"model": MODEL, "prompt": PROMPT, "max_tokens": 32, "temperature": 0, "ignore_eos": True, "seed": 1}
MAX_SEQUENCES, MAX_WAITING = 16, 8
FILLER_TOKENS = 800


@pytest.fixture(scope="module")
def pair(url: str) -> Iterator[str]:
    """An application of its own, whose routers hear of a replica's load only by the streams that they read."""
    args = AppArgs(
        routers=2, min_replicas=2, max_replicas=2, replica_cpus=0, router_cpus=0, drain_s=1, kv_tokens=65_536,
        max_sequences=MAX_SEQUENCES, max_waiting=MAX_WAITING, routing_stats_period_s=60,
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


def burst(caller: httpx.Client, asked_ms: float | None, requests: int = 48) -> list[httpx.Response]:
    with ThreadPoolExecutor(24) as pool:
        return list(pool.map(lambda seed: complete(caller, seed=seed, latency_slo_ms=asked_ms), range(requests)))


@ray.remote(num_cpus=0)
class Filler:
    """Keeps the queue of one replica full, past the routers, which do not hear of it."""

    def __init__(self, replica: str) -> None:
        self.replica = replica
        self.handle = serve.get_deployment_handle("Replica", "pair").options(stream=True)
        self.full = asyncio.Event()

    async def fill(self) -> None:
        await asyncio.gather(*(self._keep_asking(seed) for seed in range(MAX_SEQUENCES + MAX_WAITING + 1)))

    async def filled(self) -> None:
        await asyncio.wait_for(self.full.wait(), 30)

    async def _keep_asking(self, seed: int) -> None:
        refused = 0
        while True:
            request = ReplicaRequest(
                request_id=f"filler-{uuid.uuid4().hex}",
                prompt_token_ids=PROMPT,
                options={"max_tokens": FILLER_TOKENS, "temperature": 0, "ignore_eos": True, "seed": seed},
                plan=Plan((AR,)).to_dict(),
                size=Size(len(PROMPT), FILLER_TOKENS),
                ranked=(self.replica,),
            )
            async for message in self.handle.generate.remote(request):
                if not isinstance(message, NotInTime):
                    refused = 0
                    continue
                refused += 1
                # Before the first forward the queue is full, but all places are free.
                if refused == 5:
                    self.full.set()
                await asyncio.sleep(0.1)


@pytest.fixture
def preferred(caller: httpx.Client) -> str:
    """The replica that an idle request goes to."""
    return str(complete(caller).json()["stepdial"]["replica"])


@pytest.fixture
def filler(preferred: str) -> Iterator[Any]:
    actor = Filler.remote(preferred)
    yield actor
    ray.kill(actor)


def test_what_one_replica_refuses_the_next_one_takes(caller: httpx.Client, filler: Any) -> None:
    """A replica that was filled by others since the routers last heard of it, when it was idle, has the last word."""
    filler.fill.remote()
    ray.get(filler.filled.remote())
    again: list[dict[str, Any]] = []
    # All that the filler has running may end at once, and there is room until it has asked again.
    for _ in range(5):
        answers = [answer.json() for answer in burst(caller, None, requests=32) if answer.status_code == 200]
        again += [one for one in answers if "planned again after a replica refused" in one["stepdial"]["reason"]]
        if again:
            break
    assert again
    assert all(one["usage"]["completion_tokens"] == 32 for one in again)


def smallest_ms(caller: httpx.Client) -> float:
    return float(complete(caller, latency_slo_ms=1).json()["error"]["smallest_feasible_slo_ms"])


def test_many_at_once_are_answered_or_told_what_is_feasible(caller: httpx.Client) -> None:
    asked_ms = 3 * smallest_ms(caller)
    answers = burst(caller, asked_ms)
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
