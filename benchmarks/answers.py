"""Many requests through one engine at once, and what came of each."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field

from engine.engine import Engine
from engine.events import Delta, FinishReason, Report
from engine.plan import Plan
from engine.request import GenerationOptions


@dataclass(slots=True)
class Ask:
    """One request: prompt ids and options; `plan` as a router would give it, else the engine's own."""

    prompt: list[int]
    options: GenerationOptions
    plan: Plan | None = None
    request_id: str | None = None


@dataclass(slots=True)
class Answer:
    """A request's whole stream, put together."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    report: Report = field(default_factory=Report)


async def answer(engine: Engine, ask: Ask) -> Answer:
    """Streams one request to its end."""
    whole = Answer()
    async for event in engine.generate(ask.prompt, ask.options, plan=ask.plan, request_id=ask.request_id):
        if isinstance(event, Delta):
            whole.token_ids += event.token_ids
            whole.text += event.text
        else:
            whole.finish_reason, whole.report = event.finish_reason, event.report
    return whole


async def answers(engine: Engine, asks: Sequence[Ask], concurrency: int | None = None) -> list[Answer]:
    """All requests, at most `concurrency` at a time (default: all at once), in the order given."""
    places = asyncio.Semaphore(concurrency or max(len(asks), 1))

    async def one(ask: Ask) -> Answer:
        async with places:
            return await answer(engine, ask)

    return list(await asyncio.gather(*(one(ask) for ask in asks)))
