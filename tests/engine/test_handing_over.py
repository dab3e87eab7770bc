"""When events reach their readers: where a device runs forwards, while it runs the next one, and never later."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
import torch

from engine.batch import ForwardBatch
from engine.decoding.choice import Choice
from engine.engine import Engine
from engine.errors import EngineStopped
from engine.events import Delta, Event, Finished
from engine.in_a_row import Row
from engine.request import GenerationOptions
from engine.sequence import Sequence
from tests.engine.serving import PROMPTS, ask, load

FIELDS: dict[str, Any] = {
    "temperature": 0, "max_tokens": 40, "decoding": "diffusion", "block_length": 8, "threshold": 0.7,
}  # fmt: skip


def like_on_a_device(engine: Engine, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's forwards give tokens instead of logits, one at a time, and `log` says when."""
    executor, core = engine.core.executor, engine.core
    run, mask_id = executor.run, core.mask_token_id

    def choose(batch: ForwardBatch, asked: Callable[[], Any]) -> Choice:
        asked()
        logits = run(batch).index_fill(1, torch.tensor([mask_id]), float("-inf"))
        best = logits.softmax(-1).max(-1)
        log.append("launched")
        return Choice(best.indices, best.values)

    monkeypatch.setattr(executor, "choose", choose)
    monkeypatch.setattr(executor, "keeps_logits", False)
    monkeypatch.setattr(core, "_row", lambda *_: Row())


def noted(engine: Engine, log: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """`log` says what came of steps, and when that was handed over."""
    step, deliver, wait = engine.core.step, engine._deliver, engine._wake.wait

    def stepped() -> list[tuple[Sequence, Event]]:
        events = step()
        log.append(f"{len(events)} events")
        return events

    def delivered() -> None:
        if engine._held:
            log.append(f"handed over {len(engine._held)}")
        deliver()

    def slept(timeout: float) -> bool:
        log.append("slept")
        return wait(timeout)

    monkeypatch.setattr(engine.core, "step", stepped)
    monkeypatch.setattr(engine, "_deliver", delivered)
    monkeypatch.setattr(engine._wake, "wait", slept)
    engine.core.meanwhile.deliver = delivered


async def streamed(engine: Engine, prompt: list[int]) -> list[int]:
    """All tokens of a stream, after which nothing comes."""
    events = [event async for event in engine.generate(prompt, GenerationOptions(**FIELDS))]
    assert isinstance(events[-1], Finished)
    return [token for event in events if isinstance(event, Delta) for token in event.token_ids]


async def test_where_a_device_runs_forwards_events_wait_for_the_next_one_to_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = load()
    expected = [ask(engine, prompt, **FIELDS).token_ids for prompt in PROMPTS[:3]]
    log: list[str] = []
    like_on_a_device(engine, log, monkeypatch)
    noted(engine, log, monkeypatch)
    engine.start()
    assert await asyncio.gather(*(streamed(engine, prompt) for prompt in PROMPTS[:3])) == expected
    assert await streamed(engine, PROMPTS[0]) == expected[0]
    engine.stop()
    came = [index for index, word in enumerate(log) if word.endswith(" events") and not word.startswith("0")]
    assert len(came) >= 8
    for index in came:
        handed = f"handed over {log[index].split()[0]}"
        # Where the loop has nothing more to do, at once: it never sleeps on them.
        assert log[index + 1] == handed or log[index + 1 : index + 3] == ["launched", handed]
    launched_first = sum(log[index + 1] == "launched" for index in came)
    assert launched_first >= len(came) - 4, "all but the last one of each answer, at most"


async def test_where_the_host_computes_they_are_handed_over_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    log: list[str] = []
    noted(engine, log, monkeypatch)
    engine.start()
    await streamed(engine, PROMPTS[0])
    engine.stop()
    came = [index for index, word in enumerate(log) if word.endswith(" events") and not word.startswith("0")]
    assert len(came) >= 4
    assert all(log[index + 1].startswith("handed over") for index in came)


async def test_what_was_decided_before_the_loop_died_or_stopped_is_still_read(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = load()
    expected = ask(engine, PROMPTS[0], **FIELDS).token_ids
    like_on_a_device(engine, [], monkeypatch)
    step = engine.core.step
    seen: list[int] = []

    def dying() -> list[tuple[Sequence, Event]]:
        if len(seen) >= 16:
            raise RuntimeError("gone")
        events = step()
        seen.extend(token for _, event in events if isinstance(event, Delta) for token in event.token_ids)
        return events

    monkeypatch.setattr(engine.core, "step", dying)
    engine.start()
    read: list[int] = []

    async def reading() -> None:
        async for event in engine.generate(PROMPTS[0], GenerationOptions(**FIELDS)):
            assert isinstance(event, Delta)
            read.extend(event.token_ids)

    with pytest.raises(EngineStopped, match="gone"):
        await reading()
    assert len(read) >= 16
    assert read == seen == expected[: len(read)]
    engine.stop()
