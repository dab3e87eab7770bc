"""When a replica says that it is of no use any more."""

from __future__ import annotations

import asyncio
import threading

import pytest

from deployments import replica as replica_module
from deployments.ranks import ActorLauncher
from deployments.replica import Replica
from deployments.settings import AppArgs
from engine.errors import EngineStopped
from engine.request import GenerationOptions
from tests.engine.serving import PROMPTS, load


async def test_a_loop_that_hangs_in_a_step_is_unhealthy_and_one_that_waits_for_work_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where a device, or another rank on it, never answers."""
    replica = Replica.__new__(Replica)
    replica.engine, replica.ranks = load(), ActorLauncher(AppArgs())
    engine, begun, answers = replica.engine, threading.Event(), threading.Event()
    step = engine.core.step

    def hanging() -> object:
        begun.set()
        answers.wait(30)
        return step()

    monkeypatch.setattr(engine.core, "step", hanging)
    with pytest.raises(EngineStopped, match="not running"):
        replica.check_health()
    engine.start()
    try:
        replica.check_health()
        stream = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=3, ignore_eos=True))
        waiting = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(begun.wait, 30)
        replica.check_health()
        monkeypatch.setattr(replica_module, "HUNG_S", 0.0)
        with pytest.raises(EngineStopped, match="has been in one step for 0 s"):
            replica.check_health()
        answers.set()
        await waiting
        async for _ in stream:
            pass
        engine.stop()
        engine.start()
        replica.check_health()
    finally:
        answers.set()
        engine.close()
