"""One Ray cluster for the run, the real application on a free port, and OpenAI's client for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx
import pytest
import ray
from openai import OpenAI
from ray import serve

from deployments.app import build
from deployments.serve_local import free_port
from deployments.settings import AppArgs

READY_S = 120
ROUTER_PORT = free_port()


def wait_until_ready(url: str, replicas: int) -> None:
    until = time.monotonic() + READY_S
    while time.monotonic() < until:
        try:
            answer = httpx.get(f"{url}/ready", timeout=5)
            if answer.status_code == 200 and answer.json()["replicas"] >= replicas:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"{url} was not ready after {READY_S} s")


@pytest.fixture(scope="session")
def url() -> Iterator[str]:
    """The address of a running Stepdial with two replicas of the model that ships."""
    port = free_port()
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
    args = AppArgs(
        min_replicas=2, max_replicas=2, replica_cpus=0, router_cpus=0, drain_s=2, health_period_s=1, kv_tokens=32_768,
        router_port=ROUTER_PORT,
    )  # fmt: skip
    serve.run(build(args), name="stepdial", route_prefix="/")
    address = f"http://127.0.0.1:{port}"
    wait_until_ready(address, 2)
    yield address
    serve.shutdown()
    ray.shutdown()


@pytest.fixture(scope="session")
def client(url: str) -> OpenAI:
    return OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(params=["proxy", "router"])
def address(request: pytest.FixtureRequest, url: str) -> str:
    """Serve's proxy, and the router's own port."""
    return url if request.param == "proxy" else f"http://127.0.0.1:{ROUTER_PORT}"


@pytest.fixture
def caller(address: str) -> OpenAI:
    """OpenAI's client at either address."""
    return OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=60)
