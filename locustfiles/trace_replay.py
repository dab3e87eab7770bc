"""Replays a trace of arrival times and lengths, or one generated with Gamma arrivals and lognormal lengths.

    locust -f locustfiles/trace_replay.py --headless --host http://127.0.0.1:8000 --trace FILE.csv --rate 2

Each request of the trace becomes the task whose prompt and answer are nearest to its scaled lengths, so that quality
counts; with `--lengths-only` it becomes random tokens of exactly these lengths, and there is no quality to count.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

from locust import events

from locustfiles.caller import Caller  # first: locust patches the standard library

# isort: split
from engine.checkpoint.tokenizer import Tokenizer
from engine.errors import StepdialError
from engine.tiny.tasks import generate
from locustfiles import trace_file
from locustfiles.trace_file import Scale, TraceRequest
from locustfiles.workload import MIXED_TIERS, Arrival, Ask, Schedule, TaskShelf, chat, of_lengths, pick

CHECKPOINT = Path(__file__).parent.parent / "engine" / "tiny" / "checkpoint"
SHELF_TASKS = 2000
FIRST_WORD = 101
"""The family's special ids end at 100, the mask."""


@events.init_command_line_parser.add_listener
def _options(parser: Any) -> None:
    add = parser.add_argument
    add("--trace", default="", help="CSV file of a trace; default: one is generated.")
    add("--trace-start", type=float, default=0.0, help="Second of the trace at which the replay begins.")
    add("--fit", choices=("stretch", "thin"), default="stretch", help="How the trace gets the rate: slower, or fewer.")
    add("--prompt-scale", type=float, default=1 / 16, help="Factor on prompt lengths.")
    add("--output-scale", type=float, default=1 / 4, help="Factor on output lengths.")
    add("--cv", type=float, default=trace_file.CONV_CV, help="CV of the gaps of a generated trace.")
    add("--lengths-only", action="store_true", default=False, help="Random tokens of exactly the trace's lengths.")
    add("--checkpoint", default=str(CHECKPOINT), help="Checkpoint whose tokenizer counts lengths.")
    add("--context", type=int, default=4096, help="The model's context; longer requests are shortened.")


class TraceReplay(Caller):
    """A trace, with the tiers of the mixed load."""

    title = "Trace replay"
    purpose = "arrival times and lengths of a trace, scaled to this model"
    rate = 2.0

    @classmethod
    def schedule(cls, options: Namespace, rng: Random) -> Schedule:
        rate = cls.rate_of(options)
        if options.trace:
            whole = trace_file.read_trace(Path(options.trace))
            scale = trace_file.fit(
                whole, rate, options.fit, options.prompt_scale, options.output_scale, options.trace_start
            )
            source = Path(options.trace).name
        else:
            whole = list(trace_file.generated(rate, options.duration, rng, options.cv))
            scale = Scale(options.prompt_scale, options.output_scale)
            source = f"generated: Gamma arrivals of CV {options.cv}, lognormal lengths of the Azure conversations"
        requests = trace_file.scaled(whole, scale, options.duration, rng)
        notes = {"arrivals": "trace", "rate_per_s": rate, **trace_file.notes(scale, source)}
        notes["lengths"] = "exact, random tokens" if options.lengths_only else "of the nearest task"
        return Schedule(arrivals(requests, options, rng), options.duration, notes)


def arrivals(requests: Iterator[TraceRequest], options: Namespace, rng: Random) -> Iterator[Arrival]:
    """What to send for each request of a trace. Raises ValueError for a checkpoint without a tokenizer."""
    try:
        tokenizer = Tokenizer.from_dir(options.checkpoint)
    except StepdialError as error:
        raise ValueError(f"checkpoint {options.checkpoint}: {error}") from None
    if tokenizer is None:
        raise ValueError(f"checkpoint {options.checkpoint} has no tokenizer; allowed: one with a tokenizer.json")
    if options.lengths_only:
        words = range(FIRST_WORD, tokenizer.vocab_size)
        return (
            Arrival(each.at_s, of_lengths(each, pick(MIXED_TIERS, rng), options.model, words, options.context, rng))
            for each in requests
        )
    shelf = TaskShelf(
        generate("test", SHELF_TASKS, options.seed),
        lambda task: len(tokenizer.render_chat(task.messages)),
        lambda task: len(tokenizer.encode(task.answer, add_bos=False)),
    )

    def ask(request: TraceRequest) -> Ask:
        task = shelf.nearest(request.prompt_tokens, request.output_tokens)
        return chat(task, pick(MIXED_TIERS, rng), options.model)

    return (Arrival(each.at_s, ask(each)) for each in requests)
