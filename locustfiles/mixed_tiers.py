"""Mixed tiers with open-loop Poisson arrivals: `make loadtest`, or against a server that runs already

    locust -f locustfiles/mixed_tiers.py --headless --users 1 --run-time 60s --stop-timeout 60 --rate 4 \
        --host http://127.0.0.1:8000

Requests arrive whether or not earlier ones are done, and times count from the scheduled arrival, so that a slow server
is not spared (no coordinated omission). Prompts have one right answer, so the report shows quality beside latency.
"""

from __future__ import annotations

import json
import random
import time
from argparse import Namespace
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

from locust import HttpUser, constant, events, task  # first: it patches the standard library

# isort: split
import gevent

from engine.tiny.tasks import Task, generate

TIERS: dict[str, tuple[float, dict[str, Any]]] = {
    "realtime": (0.25, {"service_tier": "realtime"}),
    "interactive": (0.25, {"service_tier": "priority"}),
    "standard": (0.25, {"service_tier": "standard"}),
    "own SLO of 3 s": (0.15, {"latency_slo_ms": 3000}),
    "batch": (0.10, {"service_tier": "flex"}),
}
"""Share of arrivals, and what the request says."""
MAX_TOKENS = 300


@dataclass
class Tally:
    """What became of the requests of one tier."""

    offered: int = 0
    refused: int = 0
    failed: int = 0
    answered: int = 0
    right: int = 0
    with_slo: int = 0
    met: int = 0
    first_ms: list[float] = field(default_factory=list)
    total_ms: list[float] = field(default_factory=list)
    steps: list[int] = field(default_factory=list)


TALLIES: dict[str, Tally] = defaultdict(Tally)


@events.init_command_line_parser.add_listener
def _arguments(parser: Any) -> None:
    parser.add_argument("--rate", type=float, default=4.0, help="arrivals per second, all tiers together")
    parser.add_argument("--seed", type=int, default=1, help="of arrivals and prompts")


class Clients(HttpUser):
    """All clients: one user that starts requests at random times and never waits for them."""

    wait_time = constant(0)
    abstract = False

    def on_start(self) -> None:
        options: Namespace = self.environment.parsed_options
        self.rng = random.Random(options.seed)
        self.rate = options.rate
        self.tasks_to_send = generate("test", 1_000_000, options.seed)
        self.due = time.perf_counter()
        self.open: set[gevent.Greenlet] = set()

    @task
    def arrive(self) -> None:
        """Waits for the next arrival and starts it."""
        self.due += self.rng.expovariate(self.rate)
        gevent.sleep(max(0.0, self.due - time.perf_counter()))
        tiers = list(TIERS)
        tier = self.rng.choices(tiers, [TIERS[name][0] for name in tiers])[0]
        request = gevent.spawn(self.ask, tier, next(self.tasks_to_send), self.due)
        self.open.add(request)
        request.rawlink(self.open.discard)

    def on_stop(self) -> None:
        gevent.joinall(list(self.open))

    def ask(self, tier: str, prompt: Task, due: float) -> None:
        """One streamed chat; times count from when it was due."""
        tally = TALLIES[tier]
        tally.offered += 1
        body = {
            "model": "stepdial-tiny", "messages": prompt.messages, "temperature": 0, "max_tokens": MAX_TOKENS,
            "stream": True, **TIERS[tier][1],
        }  # fmt: skip
        with self.client.post(
            "/v1/chat/completions", json=body, stream=True, catch_response=True, name=tier
        ) as answer:  # fmt: skip
            if answer.status_code in (400, 429, 503):
                tally.refused += 1
                answer.success()
                return
            if answer.status_code != 200:
                tally.failed += 1
                answer.failure(f"status {answer.status_code}")
                return
            text, first_s, said = "", None, None
            for line in answer.iter_lines():
                if not line.startswith(b"data: {"):
                    continue
                event = json.loads(line[len(b"data: ") :])
                if "error" in event:
                    tally.failed += 1
                    answer.failure(event["error"]["message"])
                    return
                piece = event["choices"][0]["delta"].get("content") or ""
                if piece and first_s is None:
                    first_s = time.perf_counter() - due
                text += piece
                said = event.get("stepdial", said)
            answer.success()
        self.count(tally, tier, text == prompt.answer, first_s, time.perf_counter() - due, said or {})

    def count(
        self, tally: Tally, tier: str, right: bool, first_s: float | None, total_s: float, said: dict[str, Any]
    ) -> None:
        tally.answered += 1
        tally.right += right
        tally.total_ms.append(total_s * 1e3)
        tally.steps.append(said.get("denoise_steps", 0))
        if first_s is not None:
            tally.first_ms.append(first_s * 1e3)
            self.report("first block", tier, first_s)
        self.report("total", tier, total_s)
        if said.get("slo_ms"):
            tally.with_slo += 1
            tally.met += total_s * 1e3 <= said["slo_ms"]

    def report(self, kind: str, tier: str, seconds: float) -> None:
        events.request.fire(
            request_type=kind, name=tier, response_time=seconds * 1e3, response_length=0, exception=None, context={}
        )  # fmt: skip


def quantile(values: list[float], q: float) -> float:
    return sorted(values)[min(len(values) - 1, int(q * len(values)))] if values else float("nan")


@events.quitting.add_listener
def _print_report(**_: Any) -> None:
    """SLO attainment per tier, measured at the client."""
    print(
        f"\n{'tier':16}{'offered':>8}{'refused':>8}{'failed':>7}{'right':>7}{'SLO met':>9}{'of offered':>11}"
        f"{'first p50':>11}{'p95':>8}{'total p50':>11}{'p95':>8}{'steps':>7}"
    )
    for tier in TIERS:
        tally = TALLIES[tier]
        answered = max(tally.answered, 1)
        met = f"{tally.met / tally.with_slo:.1%}" if tally.with_slo else "-"
        offered = f"{tally.met / max(tally.offered, 1):.1%}" if tally.with_slo else "-"
        print(
            f"{tier:16}{tally.offered:8}{tally.refused:8}{tally.failed:7}{tally.right / answered:7.0%}"
            f"{met:>9}{offered:>11}{quantile(tally.first_ms, 0.5):11.0f}{quantile(tally.first_ms, 0.95):8.0f}"
            f"{quantile(tally.total_ms, 0.5):11.0f}{quantile(tally.total_ms, 0.95):8.0f}"
            f"{sum(tally.steps) / answered:7.1f}"
        )
    print(
        "times in ms from the scheduled arrival; SLO met: of the answers with one; steps: denoise forwards per answer"
    )
