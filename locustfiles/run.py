"""One run of a load file: options, arrivals, what is read beside them, the flood of refusals, files and report.

A run ends by itself: when all arrivals were sent and answered, then after the refusals. Ending it earlier (Ctrl-C,
the web UI, `--run-time`) reports what there is.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any

from locust import events  # first: it patches the standard library
from locust.runners import MasterRunner, WorkerRunner

# isort: split
import gevent
from gevent.event import Event

from engine.machine import machine
from locustfiles.cluster_metrics import ClusterSample, read_sample
from locustfiles.line import Line
from locustfiles.processes import CpuMeter
from locustfiles.record import Record, write_records
from locustfiles.refusal_cost import INFEASIBLE_SLO_MS, RefusalCost, refusal_cost
from locustfiles.report import files
from locustfiles.report.console import as_text
from locustfiles.workload import CHAT

if TYPE_CHECKING:
    from locust.env import Environment

    from locustfiles.caller import Caller
    from locustfiles.workload import Arrival, Ask

log = logging.getLogger("stepdial.load")
SAMPLE_S = 1.0
QUIET_S = 2.0
FLOOD_AT_ONCE = 8
CURRENT: Run | None = None
"""The run that Locust's users take part in; there is one at a time in a process."""


class Run:
    """One run.

    Attributes:
        begun: when it began, on the clock of `time.perf_counter`. records: one per offered request.
        line: what a client that asks one thing at a time waits for; None in an open loop.
        directory: where the report goes. finished: whether it is there.
    """

    def __init__(self, environment: Environment) -> None:
        """Raises ValueError for options that make no sense."""
        self.environment = environment
        self.options: Namespace = environment.parsed_options
        self.load = load_of(environment)
        self.schedule = self.load.schedule(self.options, Random(f"{self.load.title} {self.options.seed}"))
        self.line = None if self.schedule.at_once is None else Line(self.schedule.at_once)
        self.begun = time.perf_counter()
        self.records: list[Record] = []
        self.samples: list[ClusterSample] = []
        self.refusals: RefusalCost | None = None
        self.drained_s: float | None = None
        self.finished = False
        self.directory = Path(self.options.report or f"run/loadtest/{self.load.__module__.rsplit('.', 1)[-1]}")
        self._arrivals: Iterator[Arrival] = self.schedule.arrivals
        self._open: dict[int, gevent.Greenlet] = {}
        self._all_sent = Event()
        self._waiting = 0
        self._helpers: list[gevent.Greenlet] = []
        self._cpu = CpuMeter(environment.host)
        self._started_at = datetime.now(UTC)
        self._load_at_start = os.getloadavg()[0]

    @property
    def now_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.begun

    def begin(self, caller: Caller) -> None:
        """Called by every user as it starts; the first one starts the clock and the readings."""
        if not self._helpers:
            self.begun = time.perf_counter()
            self._helpers = [gevent.spawn(self._sample), gevent.spawn(self._follow, caller)]

    def next_arrival(self) -> tuple[Record, Ask] | None:
        """The next request, or None when all were sent."""
        arrival = next(self._arrivals, None)
        if arrival is None:
            if self._waiting == 0:
                self._all_sent.set()
            return None
        self._waiting += 1
        record = Record(len(self.records), arrival.ask.label, arrival.ask.family, arrival.due_s)
        self.records.append(record)
        return record, arrival.ask

    def offer(self, record: Record, request: gevent.Greenlet) -> None:
        """Notes that a request was started."""
        self._waiting -= 1
        self._open[record.number] = request
        request.rawlink(lambda _: self._open.pop(record.number, None))

    def finish(self) -> None:
        """Ends what is left of the run and writes it down."""
        for helper in self._helpers:
            if helper is not gevent.getcurrent():
                helper.kill(block=False)
        for number, request in list(self._open.items()):
            request.kill(block=False)
            self.records[number].error = "not answered when the run ended"
        end_s = self.now_s
        # An arrival that a user was still waiting for was never offered.
        offered = [record for record in self.records if record.due_s <= end_s and self._was_sent(record)]
        directory = self.directory
        directory.mkdir(parents=True, exist_ok=True)
        write_records(directory / files.RECORDS, offered)
        with (directory / files.SAMPLES).open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(asdict(sample)) + "\n" for sample in self.samples)
        # The quiet at the end of a schedule belongs to it; what a stopped run never offered does not.
        planned_s = self.schedule.duration_s
        facts = self._facts(planned_s if self.drained_s is not None else min(planned_s, end_s), end_s)
        (directory / files.RUN).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        report = files.write_report(directory)
        self.finished = True
        print(as_text(report))
        print(f"report: {directory / files.PAGE} and {directory / files.REPORT}")

    def _was_sent(self, record: Record) -> bool:
        return record.status != 0 or record.error is not None

    def _facts(self, span_s: float, end_s: float) -> dict[str, Any]:
        return {
            "title": self.load.title,
            "purpose": self.load.purpose,
            "started_at": self._started_at.isoformat(timespec="seconds"),
            "command": " ".join(["locust", *sys.argv[1:]]),
            "host": self.environment.host,
            "seed": self.options.seed,
            "span_s": span_s,
            "drained_s": self.drained_s,
            "end_s": end_s,
            "at_once": self.schedule.at_once,
            "arrivals": self.schedule.notes,
            "machine": machine(),
            "load_average": {"start": round(self._load_at_start, 2), "end": round(os.getloadavg()[0], 2)},
            "cpu_problem": self._cpu.problem,
            "refusals": None if self.refusals is None else asdict(self.refusals),
        }

    def _sample(self) -> None:
        """Reads cluster and CPU once a second."""
        tick = 0
        while True:
            at_s = self.now_s
            self.samples.append(read_sample(self.environment.host, at_s, self._cpu.read()))
            tick = max(tick + 1, int(at_s / SAMPLE_S) + 1)
            gevent.sleep(max(0.0, tick * SAMPLE_S - self.now_s))

    def _follow(self, caller: Caller) -> None:
        """Waits for the last answer, floods, and stops Locust."""
        self._all_sent.wait()
        gevent.joinall(list(self._open.values()))
        self.drained_s = self.now_s
        length_s = self.options.refusals or caller.refusals_s
        if length_s > 0:
            self.refusals = self._flood(caller, length_s)
        runner = self.environment.runner
        if self.environment.web_ui is None:
            runner.quit()
        else:
            runner.stop()

    def _flood(self, caller: Caller, length_s: float) -> RefusalCost:
        """Asks for the impossible, `FLOOD_AT_ONCE` at a time."""
        body = {
            "model": self.options.model,
            "messages": [{"role": "user", "content": "Reverse this list:\nhouse\nbottle\nbridge\nred\nflute"}],
            "max_tokens": 64, "stream": True, "latency_slo_ms": INFEASIBLE_SLO_MS, "on_infeasible": "reject",
        }  # fmt: skip
        statuses: list[int] = []
        times_ms: list[float] = []

        def one_client() -> None:
            while time.perf_counter() < until:
                begun = time.perf_counter()
                with caller.client.post(CHAT, json=body, catch_response=True, name="flood of refusals") as response:
                    statuses.append(response.status_code)
                    times_ms.append((time.perf_counter() - begun) * 1e3)
                    if response.status_code in (400, 429, 503):
                        response.success()

        first = self._cpu.read()
        gevent.sleep(QUIET_S)
        quiet = self._cpu.read()
        begun = time.perf_counter()
        until = begun + length_s
        gevent.joinall([gevent.spawn(one_client) for _ in range(FLOOD_AT_ONCE)])
        took_s = time.perf_counter() - begun
        return refusal_cost(statuses, times_ms, (first, quiet, self._cpu.read()), QUIET_S, took_s, FLOOD_AT_ONCE)


def load_of(environment: Environment) -> type[Caller]:
    """The load file's class. Raises ValueError when there is not exactly one."""
    classes = [each for each in environment.user_classes if hasattr(each, "schedule")]
    if len(classes) != 1 or len(environment.user_classes) != 1:
        names = ", ".join(each.__name__ for each in environment.user_classes)
        raise ValueError(f"the user classes are {names}; allowed: one load file per run")
    found: type[Caller] = classes[0]
    return found


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    parser.add_argument("--rate", type=float, default=0.0, help="Arrivals per second; 0 = the load file's own.")
    parser.add_argument("--duration", type=float, default=60.0, help="Seconds in which requests arrive.")
    parser.add_argument("--seed", type=int, default=1, help="Of arrivals and prompts.")
    parser.add_argument("--model", default="stepdial-tiny", help="Model name that requests state.")
    parser.add_argument("--refusals", type=float, default=0.0, help="Seconds of a flood of refusals after the load.")
    parser.add_argument("--report", default="", help="Folder of the report; default: run/loadtest/<load file>.")


@events.init.add_listener
def _check(environment: Environment, runner: Any, web_ui: Any, **_: Any) -> None:
    """Refuses what cannot work before anything is sent, and adds the report to the web UI."""
    if isinstance(runner, (MasterRunner, WorkerRunner)):
        sys.exit("these load files run in one process: their arrivals are one schedule, and their report is one list")
    try:
        load_of(environment)
        if web_ui is None:
            load_of(environment).schedule(environment.parsed_options, Random(0))
    except ValueError as error:
        sys.exit(f"this load cannot run: {error}")
    if web_ui is not None:

        @web_ui.app.route("/stepdial")
        def stepdial_report() -> Any:
            if CURRENT is None or not CURRENT.finished:
                return "There is no report yet: it is written when a run ends.", 404
            return (CURRENT.directory / files.PAGE).read_text(encoding="utf-8")


@events.test_start.add_listener
def _start(environment: Environment, **_: Any) -> None:
    global CURRENT
    CURRENT = None
    try:
        CURRENT = Run(environment)
    except ValueError as error:
        log.error("this load cannot run: %s", error)


@events.test_stop.add_listener
def _stop(environment: Environment, **_: Any) -> None:
    if CURRENT is not None:
        CURRENT.finish()
