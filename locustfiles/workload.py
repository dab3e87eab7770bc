"""What is sent: tasks with exactly one right answer, asked by the users that Stepdial is for."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

from engine.tiny.tasks import SHARES, Task, draw

if TYPE_CHECKING:
    from collections.abc import Callable

    from locustfiles.trace_file import TraceRequest

MAX_TOKENS = 300
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
LENGTHS_ONLY = "lengths only"
COMMON: Mapping[str, Any] = {"temperature": 0, "stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class Ask:
    """One request to send, and its right answer (None: it has none)."""

    label: str
    family: str
    path: str
    body: dict[str, Any]
    answer: str | None


@dataclass(frozen=True, slots=True)
class Arrival:
    """An ask and when it is due, seconds after the start."""

    due_s: float
    ask: Ask


@dataclass(frozen=True, slots=True)
class Schedule:
    """All arrivals of a run, in order.

    Attributes:
        duration_s: the span in which they arrive. notes: what the report says about them.
        at_once: most requests that the client has open; more wait at the client, on the clock. None: open loop.
    """

    arrivals: Iterator[Arrival]
    duration_s: float
    notes: dict[str, Any]
    at_once: int | None = None


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of request: its share of arrivals, the fields that state its SLO, and task families by weight."""

    label: str
    share: float
    fields: Mapping[str, Any] = field(default_factory=dict)
    families: Mapping[str, float] = field(default_factory=lambda: SHARES)


MIXED_TIERS = (
    Kind("realtime", 0.25, {"service_tier": "realtime"}),
    Kind("interactive", 0.15, {"service_tier": "interactive"}),
    Kind("priority", 0.10, {"service_tier": "priority"}),
    Kind("own SLO of 3 s", 0.15, {"latency_slo_ms": 3000}),
    Kind("standard", 0.15, {"service_tier": "standard"}),
    Kind("default", 0.10),
    Kind("batch", 0.05, {"service_tier": "batch"}),
    Kind("flex", 0.05, {"service_tier": "flex"}),
)
"""Every tier, OpenAI's own `service_tier` values, and an SLO of a request's own."""

CODING_ASSISTANT = (
    Kind("completion while typing", 0.6, {"service_tier": "realtime"}, {"gap": 1}),
    Kind("write a class", 0.3, {"service_tier": "interactive"}, {"code": 1}),
    Kind("write a class in 800 ms", 0.1, {"latency_slo_ms": 800}, {"code": 1}),
)
"""Gaps filled while somebody types, and classes written while somebody watches."""

DOCUMENT_EDITOR = (
    Kind("replace a word", 0.5, {"service_tier": "interactive"}, {"replacing": 1}),
    Kind("reorder a list", 0.2, {"service_tier": "interactive"}, {"reversing": 1, "sorting": 1}),
    Kind("table to JSON", 0.3, {"service_tier": "standard"}, {"records": 1}),
)
"""Text that is mostly kept, which a person waits for with some patience."""

LOW_BATCH = (
    Kind("tool call", 0.5, {"latency_slo_ms": 1500}),
    Kind("best answer", 0.3, {}),
    Kind("quick answer", 0.2, {"service_tier": "realtime"}, {"recall": 1, "gap": 1, "sorting": 1}),
)
"""One caller, one request at a time: where diffusion's latency counts most."""


def chat(task: Task, kind: Kind, model: str) -> Ask:
    """A streamed chat of a task."""
    body = {"model": model, "messages": task.messages, "max_tokens": MAX_TOKENS, **COMMON, **kind.fields}
    return Ask(kind.label, task.task, CHAT, body, task.answer)


def pick(kinds: Sequence[Kind], rng: Random) -> Kind:
    """One of the kinds, by share."""
    return rng.choices(kinds, [kind.share for kind in kinds])[0]


def asks(kinds: Sequence[Kind], model: str, rng: Random) -> Iterator[Ask]:
    """Requests without end, of the test split: nothing that the model was trained or calibrated on."""
    while True:
        kind = pick(kinds, rng)
        family = rng.choices(list(kind.families), list(kind.families.values()))[0]
        yield chat(draw(rng, family, "test"), kind, model)


def at_times(times: Iterable[float], what: Iterable[Ask]) -> Iterator[Arrival]:
    """The asks, one at each time."""
    return (Arrival(due_s, ask) for due_s, ask in zip(times, what, strict=False))


class TaskShelf:
    """Tasks by length, to find one about as long as a trace's request.

    Distance is in logarithms, so that half as long is as far as twice as long.
    """

    def __init__(
        self, tasks: Iterable[Task], prompt_tokens: Callable[[Task], int], output_tokens: Callable[[Task], int]
    ) -> None:
        """The two functions count tokens. Raises ValueError where there are no tasks."""
        shelf = sorted(
            ((math.log(max(1, output_tokens(task))), math.log(max(1, prompt_tokens(task))), task) for task in tasks),
            key=lambda entry: entry[:2],
        )
        if not shelf:
            raise ValueError("a shelf without tasks has no nearest one")
        self._shelf = shelf
        self._outputs = [entry[0] for entry in shelf]

    def nearest(self, prompt_tokens: int, output_tokens: int) -> Task:
        """The task whose prompt and answer are nearest to these lengths."""
        output, prompt = math.log(max(1, output_tokens)), math.log(max(1, prompt_tokens))
        best, best_distance = self._shelf[0][2], math.inf
        middle = bisect_left(self._outputs, output)
        # Outward in both directions until the output's length alone is farther away than the best.
        for places in (range(middle, len(self._shelf)), range(middle - 1, -1, -1)):
            for place in places:
                its_output, its_prompt, task = self._shelf[place]
                if abs(its_output - output) >= best_distance:
                    break
                distance = abs(its_output - output) + abs(its_prompt - prompt)
                if distance < best_distance:
                    best, best_distance = task, distance
        return best


def of_lengths(request: TraceRequest, kind: Kind, model: str, vocabulary: range, context: int, rng: Random) -> Ask:
    """A completion of exactly these lengths: random token ids, no end before the last token, no right answer.

    What is longer than the context is shortened, the prompt first.
    """
    output = min(request.output_tokens, context - 1)
    prompt = min(request.prompt_tokens, context - output)
    body = {
        "model": model,
        "prompt": [rng.choice(vocabulary) for _ in range(prompt)],
        "max_tokens": output,
        "ignore_eos": True,
        **COMMON,
        **kind.fields,
    }
    return Ask(kind.label, LENGTHS_ONLY, COMPLETIONS, body, None)
