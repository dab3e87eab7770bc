"""The measured client: starts each request when it is due, whatever became of earlier ones, and times its stream.

Times count from the scheduled arrival, so that neither a slow server nor a slow load generator is spared (no
coordinated omission). Locust's number of users changes nothing: users share the arrivals of one schedule.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from contextlib import nullcontext
from random import Random
from typing import Any

from locust import FastHttpUser, constant, task  # first: it patches the standard library
from locust.contrib.fasthttp import FAILURE_EXCEPTIONS, ResponseContextManager
from locust.exception import StopUser

# isort: split
import gevent

from locustfiles import run
from locustfiles.record import Record
from locustfiles.stream import StreamReader
from locustfiles.workload import Ask, Schedule

HEADERS = {"Accept-Encoding": "identity"}


class Caller(FastHttpUser):  # type: ignore[misc]
    """Base class of the load files; a load file says which requests arrive when.

    Attributes:
        title, purpose: for the report. rate: arrivals per second where `--rate` is 0.
        refusals_s: length of the flood of refusals at the end where `--refusals` is 0.
    """

    abstract = True
    wait_time = constant(0)
    # The pool must never make a request wait: that would close the open loop.
    concurrency = 100_000
    network_timeout = 120.0
    connection_timeout = 30.0

    title = ""
    purpose = ""
    rate = 4.0
    refusals_s = 0.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        """The arrivals of a run. Raises ValueError for options that make no sense."""
        raise NotImplementedError

    @classmethod
    def rate_of(cls, options: Namespace) -> float:
        """Arrivals per second: `--rate`, or the load file's own."""
        return options.rate or cls.rate

    def on_start(self) -> None:
        current = run.CURRENT
        if current is None:
            raise StopUser
        self.current: run.Run = current
        current.begin(self)

    @task
    def arrive(self) -> None:
        """Waits for the next arrival and starts it."""
        current = self.current
        offered = current.next_arrival()
        if offered is None:
            raise StopUser
        record, ask = offered
        gevent.sleep(max(0.0, record.due_s - current.now_s))
        record.lag_ms = (current.now_s - record.due_s) * 1e3
        current.offer(record, gevent.spawn(self.ask, current, record, ask))

    def ask(self, current: run.Run, record: Record, ask: Ask) -> None:
        """One streamed request, into its record."""
        due = current.begun + record.due_s
        with current.line or nullcontext():
            record.sent_ms = (time.perf_counter() - due) * 1e3
            with self.client.post(
                ask.path, json=ask.body, headers=HEADERS, stream=True, catch_response=True, name=ask.label
            ) as response:
                self.read(response, record, ask, due)
                meta = response.request_meta
                meta["response_time"] = record.total_ms or (time.perf_counter() - due) * 1e3
                if record.error is not None:
                    response.failure(record.error)
                else:
                    response.success()
                if record.refused:
                    # Refusals are quick; in the row of the answers they would flatter it.
                    meta["name"] = f"{ask.label}: refused"
        if record.answered:
            self.show("first block", ask.label, record.first_ms)
            for gap_ms in record.gaps_ms:
                self.show("block gap", ask.label, gap_ms)

    def read(self, response: ResponseContextManager, record: Record, ask: Ask, due: float) -> None:
        """Reads the stream to its end, or the error."""
        record.status = response.status_code
        failure = getattr(response, "error", None)
        try:
            if response.status_code == 0 or (failure is not None and not hasattr(failure, "code")):
                raise failure or ConnectionError("no answer")
            if response.status_code != 200:
                read_error(response, record)
                record.total_ms = (time.perf_counter() - due) * 1e3
                return
            reader = StreamReader()
            while True:
                # By line, as it arrives; `iter_content` would wait until a whole chunk of its own size is full.
                line = response.stream.readline(b"\n")
                at = time.perf_counter()
                if not line:
                    break
                reader.take(line, at)
        except (*FAILURE_EXCEPTIONS, ValueError, KeyError) as error:
            record.error = f"{type(error).__name__}: {error}"
            return
        if reader.error is not None or not reader.finished:
            record.error = reader.error or "the stream ended before its end"
            return
        record.total_ms = (at - due) * 1e3
        if reader.block_s:
            record.first_ms = (reader.block_s[0] - due) * 1e3
        record.gaps_ms = reader.gaps_ms
        record.said = reader.said
        record.prompt_tokens = reader.usage.get("prompt_tokens", 0)
        record.completion_tokens = reader.usage.get("completion_tokens", 0)
        if ask.answer is not None:
            record.right = reader.text == ask.answer

    def show(self, kind: str, name: str, milliseconds: float | None) -> None:
        """A row of Locust's own statistics."""
        if milliseconds is not None:
            self.environment.events.request.fire(
                request_type=kind, name=name, response_time=milliseconds, response_length=0, exception=None, context={}
            )


def read_error(response: ResponseContextManager, record: Record) -> None:
    """The error body of an answer that is not 200. A refusal is no error of the run."""
    error: dict[str, Any] = json.loads(response.content or b"{}").get("error", {})
    record.code = error.get("code")
    record.smallest_feasible_slo_ms = error.get("smallest_feasible_slo_ms")
    if not record.refused:
        record.error = f"status {record.status}: {error.get('message', 'no message')}"
