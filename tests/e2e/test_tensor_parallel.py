"""A replica of two ranks through `serve run`: the answers of one rank, and a group that dies and returns as one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
import ray
from openai import OpenAI
from ray import serve

from deployments.serve_local import ROOT
from engine.tiny.tasks import generate
from tests.e2e.conftest import wait_until_ready
from tests.e2e.test_failures import eventually

APP = "two-ranks"
MODEL = "stepdial-tiny"
ASKED: dict[str, Any] = {
    "model": MODEL, "messages": next(iter(generate("test", 1, seed=3))).messages, "seed": 5, "max_tokens": 60,
    "temperature": 0.7,
}  # fmt: skip
LONG: dict[str, Any] = {
    "model": MODEL, "prompt": [1, 300, 301, 302], "max_tokens": 200, "min_tokens": 200, "temperature": 0, "seed": 1,
    "decoding": "ar",
}  # fmt: skip


@pytest.fixture(scope="module")
def two_ranks(url: str) -> Iterator[str]:
    """The address of a second application beside the first: one replica with `tp=2`, started by `serve run`."""
    command = [
        str(Path(sys.executable).parent / "serve"), "run", "--non-blocking",
        "--address", ray.get_runtime_context().gcs_address, "--app-dir", str(ROOT), "--name", APP,
        "--route-prefix", f"/{APP}", "deployments.app:build", "tp=2", "replica_cpus=0.1", "router_cpus=0",
        "drain_s=2", "health_period_s=1", "kv_tokens=32768",
    ]  # fmt: skip
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    address = f"{url}/{APP}"
    wait_until_ready(address, 1)
    yield address
    serve.delete(APP)
    assert eventually(lambda: ranks() == [], 5), "no rank outlives its application"


def ranks() -> list[int]:
    """Process ids of this cluster's actors of ranks other than 0."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            line = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if line and line[0].startswith("ray::Rank."):
            found.append(process.pid)
    return found


@pytest.mark.parametrize("decoding", ["ar", "diffusion", "self_speculation"])
def test_a_stream_has_the_text_of_one_rank(client: OpenAI, two_ranks: str, decoding: str) -> None:
    asked = {**ASKED, "extra_body": {"decoding": decoding, "min_tokens": 60, "cache_salt": decoding}}
    both = OpenAI(base_url=f"{two_ranks}/v1", api_key="none", max_retries=0, timeout=60)
    stream = both.chat.completions.create(**asked, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    assert text == client.chat.completions.create(**asked).choices[0].message.content
    assert text


def test_a_rank_that_dies_restarts_its_group_and_the_stream_goes_on(client: OpenAI, two_ranks: str) -> None:
    text, said = "", {}
    killed: list[int] = []
    first = ""
    with httpx.stream("POST", f"{two_ranks}/v1/completions", json={**LONG, "stream": True}, timeout=60) as answer:
        assert answer.status_code == 200
        for line in answer.iter_lines():
            if not line.startswith("data: {"):
                continue
            event = json.loads(line.removeprefix("data: "))
            assert "error" not in event, event
            text += event["choices"][0]["text"] if event["choices"] else ""
            said = event.get("stepdial", said)
            if not killed and len(text) > 20:
                first = answer.headers["x-stepdial-replica"]
                killed = ranks()
                assert len(killed) == 1
                psutil.Process(killed[0]).kill()
    assert "continued after" in said["reason"]
    assert said["replica"] != first, "the whole group was replaced"
    [worker] = ranks()
    assert worker != killed[0]
    reference = client.completions.create(
        model=MODEL, prompt=LONG["prompt"], max_tokens=LONG["max_tokens"], temperature=0, seed=1,
        extra_body={"decoding": "ar", "min_tokens": LONG["min_tokens"], "cache_salt": "one rank"},
    )  # fmt: skip
    assert text == reference.choices[0].text


def test_a_rank_0_that_dies_takes_its_group_along(two_ranks: str) -> None:
    wait_until_ready(two_ranks, 1)
    [worker] = ranks()
    answer = httpx.post(
        f"{two_ranks}/v1/completions", json={"model": MODEL, "prompt": [1], "max_tokens": 2}, timeout=30
    )
    replica = answer.headers["x-stepdial-replica"]
    ray.kill(ray.get_actor(f"SERVE_REPLICA::{APP}#Replica#{replica}", namespace="serve"))
    assert eventually(lambda: not psutil.pid_exists(worker), 5)
