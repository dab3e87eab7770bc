"""A reader that leaves stops costing forwards within one, and its pages come back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from engine.engine import Engine
from engine.events import Delta, Finished
from engine.request import GenerationOptions
from tests.engine.serving import PROMPTS, ask, load

LONG: dict[str, Any] = {"max_tokens": 900, "ignore_eos": True, "temperature": 0}


@pytest.fixture
async def running() -> AsyncIterator[Engine]:
    engine = load(prefix_reuse=False)
    engine.start()
    yield engine
    engine.stop()


async def until(condition: Any, timeout_s: float = 20.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        await asyncio.sleep(0.005)


@pytest.mark.parametrize("mode", [{"decoding": "ar"}, {"decoding": "diffusion", "block_length": 32, "threshold": 0.9}])
async def test_closing_the_stream_frees_the_pages_and_ends_the_forwards(running: Engine, mode: dict[str, Any]) -> None:
    stream = running.generate(PROMPTS[0], GenerationOptions(**LONG, **mode))
    first = await anext(stream)
    assert isinstance(first, Delta)
    await stream.aclose()
    await until(lambda: running.core.idle)
    stats = running.stats()
    assert stats.pages_in_use == 0
    assert stats.finished == {"cancelled": 1}
    await asyncio.sleep(0.1)
    assert running.stats().forwards == stats.forwards


async def test_a_cancelled_task_frees_its_sequence(running: Engine) -> None:
    async def read() -> None:
        async for _ in running.generate(PROMPTS[0], GenerationOptions(**LONG)):
            pass

    task = asyncio.create_task(read())
    await until(lambda: running.stats().running == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: running.core.idle)
    assert running.stats().pages_in_use == 0


async def test_the_others_do_not_notice(running: Engine) -> None:
    fields = {"max_tokens": 60, "ignore_eos": True, "temperature": 0, "decoding": "self_speculation"}

    async def tokens() -> list[int]:
        events = [event async for event in running.generate(PROMPTS[3], GenerationOptions(**fields))]
        return [token for event in events if isinstance(event, Delta) for token in event.token_ids]

    async def leave() -> None:
        stream = running.generate(PROMPTS[1], GenerationOptions(**LONG))
        await anext(stream)
        await stream.aclose()

    answers = await asyncio.gather(tokens(), leave(), tokens(), leave())
    expected = ask(load(), PROMPTS[3], **fields).token_ids
    assert answers[0] == answers[2] == expected


@pytest.mark.parametrize("after", [0, 1, 2, 5])
def test_no_forward_is_spent_on_a_cancelled_sequence(after: int) -> None:
    engine = load(prefix_reuse=False)
    core = engine.core
    one, other = (
        engine.intake.sequence(
            name, PROMPTS[place], GenerationOptions(**LONG, decoding="diffusion"), None, core.clock()
        )
        for place, name in enumerate(("one", "other"))
    )
    core.add(one)
    core.add(other)
    for _ in range(after):
        core.step()
    forwards = one.report.forwards
    core.cancel(one)
    core.cancel(one)
    assert not one.pages
    for _ in range(3):
        assert all(sequence is not one for sequence, _ in core.step())
    assert one.report.forwards == forwards
    assert other.report.forwards == after + 3
    assert engine.stats().finished == {"cancelled": 1}
    core.cancel(other)
    assert core.idle
    assert engine.stats().pages_in_use == 0


def test_a_script_that_stops_reading_leaves_nothing_behind() -> None:
    engine = load(prefix_reuse=False)
    request = (PROMPTS[0], GenerationOptions(**LONG), None)
    events = engine.run_sync([request, request])
    next(events)
    events.close()
    assert engine.core.idle
    assert engine.stats().pages_in_use == 0
    short = GenerationOptions(max_tokens=3, temperature=0)
    assert isinstance(list(engine.run_sync([(PROMPTS[0], short, None)]))[-1][1], Finished)


def test_a_finished_sequence_cannot_be_cancelled() -> None:
    engine = load()
    core = engine.core
    one = engine.intake.sequence("one", PROMPTS[0], GenerationOptions(max_tokens=2, temperature=0), None, core.clock())
    core.add(one)
    while not core.idle:
        core.step()
    core.cancel(one)
    assert engine.stats().finished == {one.finish_reason: 1}
