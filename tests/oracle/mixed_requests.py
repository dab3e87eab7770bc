"""A mixed batch of all modes, and how to run it in any order of arrival, deterministically."""

from __future__ import annotations

from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from random import Random
from typing import Any

from engine.config import EngineConfig
from engine.engine import Engine
from engine.events import Delta, Finished, Report
from engine.request import GenerationOptions
from engine.sequence import Sequence
from tests.oracle.golden_cases import CASES, GOLDEN, MASK


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt and its request fields."""

    prompt: list[int]
    fields: dict[str, Any]

    @property
    def options(self) -> GenerationOptions:
        return GenerationOptions(**self.fields)


@dataclass(frozen=True, slots=True)
class Shown:
    """A canvas after a draft step, masks as the mask id; `start` is the absolute position of its first token."""

    start: int
    tokens: list[int]


@dataclass(slots=True)
class Result:
    """One answer, with the canvas after every draft step."""

    token_ids: list[int] = field(default_factory=list)
    canvases: list[Shown] = field(default_factory=list)
    report: Report | None = None
    finish_reason: str = ""

    @property
    def bits(self) -> tuple[object, ...]:
        """What must not change by a bit: tokens, every canvas, and the log-probability."""
        if self.report is None:
            raise RuntimeError("the request did not finish")
        return (self.token_ids, self.canvases, self.report.audit_logprob, self.report.denoise_steps)


POLICIES: tuple[dict[str, Any], ...] = (
    {"decoding": "ar", "audit": "score"},
    {"decoding": "self_speculation", "block_length": 32},
    {"decoding": "self_speculation", "block_length": 5},
    {"decoding": "self_speculation", "block_length": 16, "threshold": 0.7},
    {"decoding": "diffusion", "block_length": 32, "threshold": 0.9, "audit": "score"},
    {"decoding": "diffusion", "block_length": 32, "refinement_steps": 4, "audit": "score"},
    {"decoding": "diffusion", "block_length": 8, "refinement_steps": 3, "threshold": 0.5, "audit": 0.3},
    {"decoding": "diffusion", "block_length": 13, "refinement_steps": 13, "audit": "exact"},
)
TEMPERATURES: tuple[dict[str, Any], ...] = (
    {"temperature": 0},
    {"temperature": 0.7},
    {"temperature": 0.7, "top_p": 0.9, "top_k": 12},
    {"temperature": 0},
)


def mixed_requests(seed: int = 0) -> list[Request]:
    """32 requests: every policy at temperature 0 and 0.7, with prompts of 6 to 130 tokens."""
    rng = Random(seed)
    prompts = [case["prompt"] for case in CASES]
    requests = []
    for index in range(32):
        prompt = rng.choice(prompts)
        if index % 5 == 0:
            # Long enough to cross several pages, and positions where the query scale changes.
            prompt = [1, *(token for case in rng.sample(CASES, 3) for token in case["output"])][:130]
        fields = {
            **POLICIES[index % len(POLICIES)],
            **TEMPERATURES[index // len(POLICIES)],
            "seed": rng.randrange(2**63),
            "max_tokens": rng.choice([16, 34, 44]),
        }
        requests.append(Request(prompt, fields))
    return requests


def long_requests() -> list[Request]:
    """Every policy on a prompt of 150 to 900 tokens: several chunks, and more than one block of an attention kernel."""
    rng = Random(3)
    lengths = (150, 205, 260, 381, 390, 512, 521, 900)
    prompts = [[1, *(rng.randrange(14, 99) for _ in range(length - 1))] for length in lengths]
    return [
        Request(prompt, {**policy, "temperature": 0.7 * (index % 2), "seed": index, "max_tokens": 24})
        for index, (prompt, policy) in enumerate(zip(prompts, POLICIES, strict=True))
    ]


def engine(**settings: Any) -> Engine:
    """The golden checkpoint in float32 on one thread; its loop is driven by `run`."""
    config = {"dtype": "float32", "threads": 1, "prefix_reuse": False, "kv_tokens": 20_000, **settings}
    return Engine.from_pretrained(GOLDEN, EngineConfig(**config))


def run(engine: Engine, requests: Seq[Request], order: Seq[int] | None = None, gaps: Seq[int] = ()) -> list[Result]:
    """Answers `requests`, arriving in `order` with `gaps[i]` forwards before the i-th arrival."""
    core = engine.core
    results = [Result() for _ in requests]
    sequences: dict[str, Sequence] = {}

    def observe(name: str, kind: str, tokens: list[int | None]) -> None:
        if kind == "draft":
            shown = [MASK if token is None else token for token in tokens]
            results[int(name)].canvases.append(Shown(len(sequences[name].tokens) - 1, shown))

    core.postprocessor.observer = observe

    def step() -> None:
        for sequence, event in core.step():
            result = results[int(sequence.id)]
            if isinstance(event, Delta):
                result.token_ids += event.token_ids
            elif isinstance(event, Finished):
                result.report, result.finish_reason = event.report, event.finish_reason

    for place, index in enumerate(range(len(requests)) if order is None else order):
        for _ in range(gaps[place] if gaps else 0):
            step()
        request = requests[index]
        name = str(index)
        sequences[name] = engine.intake.sequence(name, request.prompt, request.options, None, core.clock())
        core.add(sequences[name])
    while not core.idle:
        step()
    return results
