"""Streams that nothing was promised to move to a replica that has started, and are the same as if they had stayed."""

from __future__ import annotations

import json
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import ray
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.conftest import wait_until_ready
from tests.e2e.test_autoscaling import ASKED, NARROW, WIDE
from tests.e2e.test_failures import eventually, total

LONG = {"max_tokens": 3600, "min_tokens": 3600}
MODES: list[dict[str, Any]] = [
    {**mode, **LONG, "temperature": temperature} for mode in (NARROW, WIDE) for temperature in (0, 0.7)
]
"""Of AR and diffusion, thousands of forwards each, so that they are open when there is a replica to move to."""
FURTHER = 100
"""Tokens that are read after the move: several blocks."""


class Reader:
    """Reads a stream until it has `until` tokens."""

    def __init__(self, url: str, place: int, until: int | None = None) -> None:
        self.url, self.place, self.until = url, place, until
        self.tokens: list[int] = []

    def read(self) -> list[int]:
        body = {**ASKED, **MODES[self.place], "prompt": [1, 400 + self.place], "return_token_ids": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=body, timeout=300) as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    event = json.loads(line.removeprefix("data: "))
                    assert "error" not in event, event
                    self.tokens += event["choices"][0]["token_ids"] if event["choices"] else []
                if self.until is not None and len(self.tokens) >= self.until:
                    return self.tokens[: self.until]
        raise AssertionError("the answer ended before anything moved")


def test_streams_move_to_a_replica_that_has_started(url: str) -> None:
    wait_until_ready(url, 2)
    with ThreadPoolExecutor(len(MODES)) as pool:
        readers = [Reader(url, place) for place in range(len(MODES))]
        answers = [pool.submit(reader.read) for reader in readers]
        try:
            assert eventually(lambda: all(reader.tokens for reader in readers), 60)
            victim = next(iter(streams(url)))
            ray.kill(ray.get_actor(f"SERVE_REPLICA::stepdial#Replica#{victim}", namespace="serve"))
            # They may have moved before, too: not all start at the same time.
            moved = total(url, "stepdial_moves_total")
            assert eventually(lambda: total(url, "stepdial_moves_total") > moved, 60), "nothing moved"
            assert eventually(lambda: len(streams(url)) == 2, 10), "not all of them are at one replica"
            assert victim not in streams(url)
        finally:
            for reader in readers:
                reader.until = len(reader.tokens) + FURTHER
        moved_answers = [answer.result() for answer in answers]
        alone = [pool.submit(Reader(url, place, len(answer)).read) for place, answer in enumerate(moved_answers)]
    assert moved_answers == [answer.result() for answer in alone]


def streams(url: str) -> Counter[str]:
    """How many streams the replicas have, those that have some."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(httpx.get(f"{url}/metrics", timeout=10).text):
        for sample in family.samples:
            if sample.name == "stepdial_engine_sequences_running" and sample.value:
                found[sample.labels["replica"]] += int(sample.value)
    return found
