"""The engine's asyncio face: streams, several event loops, limits of its queue, and how it ends."""

from __future__ import annotations

import asyncio
import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from engine.checkpoint.identity import checkpoint_identity
from engine.config import EngineConfig
from engine.engine import Engine, load_ladder
from engine.errors import CheckpointError, EngineStopped, InvalidRequest, QueueFull
from engine.events import Delta, Finished
from engine.plan import AR, self_speculation
from engine.request import GenerationOptions
from tests.engine.serving import MODES, PROMPTS, ask, load
from tests.oracle.golden_cases import GOLDEN

LONG = GenerationOptions(max_tokens=900, ignore_eos=True, temperature=0)


async def collect(engine: Engine, prompt: list[int], **fields: Any) -> tuple[list[int], Finished]:
    """All tokens of a stream, which must end with exactly one `Finished`."""
    events = [event async for event in engine.generate(prompt, GenerationOptions(**fields))]
    assert isinstance(events[-1], Finished)
    deltas = [event for event in events if isinstance(event, Delta)]
    assert len(deltas) == len(events) - 1
    return [token for delta in deltas for token in delta.token_ids], events[-1]


async def test_a_stream_gives_what_a_script_gets() -> None:
    engine = load()
    expected = {name: ask(engine, PROMPTS[0], **fields, max_tokens=30).token_ids for name, fields in MODES.items()}
    engine.start()
    engine.start()
    assert engine.running
    jobs = [collect(engine, PROMPTS[0], temperature=0, max_tokens=30, **fields) for fields in MODES.values()]
    for name, (tokens, finished) in zip(MODES, await asyncio.gather(*jobs), strict=True):
        assert tokens == expected[name]
        assert finished.report.completion_tokens == len(tokens)
        assert finished.report.latency_ms >= (finished.report.ttft_ms or 0) > 0
    engine.stop()
    assert not engine.running


def test_event_loops_in_several_threads_are_served_together() -> None:
    engine = load()
    fields: dict[str, Any] = {"temperature": 0, "max_tokens": 25, "decoding": "diffusion", "block_length": 8}
    expected = [ask(engine, prompt, **fields).token_ids for prompt in PROMPTS[:6]]
    engine.start()
    answers: dict[int, list[int]] = {}

    def serve(index: int) -> None:
        async def both() -> None:
            one, other = await asyncio.gather(
                collect(engine, PROMPTS[index], **fields), collect(engine, PROMPTS[index + 3], **fields)
            )
            answers[index], answers[index + 3] = one[0], other[0]

        asyncio.run(both())

    threads = [threading.Thread(target=serve, args=(index,)) for index in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    engine.stop()
    assert [answers[index] for index in range(6)] == expected


async def test_stopping_ends_open_streams() -> None:
    engine = load()
    engine.start()
    streams = [engine.generate(PROMPTS[index], LONG) for index in range(3)]
    for stream in streams:
        await anext(stream)
    await asyncio.to_thread(engine.stop)
    for stream in streams:
        with pytest.raises(EngineStopped, match="was stopped"):
            async for _ in stream:
                pass
    with pytest.raises(EngineStopped, match="not running"):
        await anext(engine.generate(PROMPTS[0], LONG))


async def test_a_stopped_engine_can_be_started_again() -> None:
    engine = load()
    expected = ask(engine, PROMPTS[0], decoding="ar", max_tokens=10).token_ids
    engine.start()
    stream = engine.generate(PROMPTS[1], LONG)
    await anext(stream)
    await asyncio.to_thread(engine.stop)
    with pytest.raises(EngineStopped):
        async for _ in stream:
            pass
    engine.start()
    tokens, _ = await collect(engine, PROMPTS[0], decoding="ar", max_tokens=10, temperature=0)
    assert tokens == expected
    for _ in range(200):
        if engine.core.idle:
            break
        await asyncio.sleep(0.02)
    assert engine.stats().pages_in_use == 0
    engine.stop()


async def test_a_loop_that_dies_says_so_to_everybody() -> None:
    engine = load()
    engine.start()
    stream = engine.generate(PROMPTS[0], LONG)
    await anext(stream)
    del engine.core.executor.kv
    with pytest.raises(EngineStopped, match=r"loop died.*kv"):
        async for _ in stream:
            pass
    assert not engine.running
    with pytest.raises(EngineStopped, match="loop died"):
        await anext(engine.generate(PROMPTS[0], LONG))
    engine.stop()


async def test_without_a_start_nothing_is_accepted() -> None:
    with pytest.raises(EngineStopped, match=r"call start\(\)"):
        await anext(load().generate(PROMPTS[0]))


async def test_a_running_engine_is_not_driven_by_hand() -> None:
    engine = load()
    engine.start()
    with pytest.raises(RuntimeError, match="use generate"):
        next(engine.run_sync([(PROMPTS[0], LONG, None)]))
    engine.stop()


async def test_a_full_queue_refuses_and_those_who_wait_are_served() -> None:
    engine = load(max_sequences=1, max_waiting=2)
    engine.start()
    first = engine.generate(PROMPTS[0], GenerationOptions(max_tokens=200, ignore_eos=True, temperature=0))
    await anext(first)
    waiting = [asyncio.create_task(collect(engine, PROMPTS[1], max_tokens=3, temperature=0)) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(QueueFull, match="2 requests are waiting"):
        await anext(engine.generate(PROMPTS[2]))
    await first.aclose()
    for tokens, _ in await asyncio.gather(*waiting):
        assert len(tokens) == 3
    engine.stop()


async def test_a_bad_request_is_refused_and_disturbs_nobody() -> None:
    engine = load()
    expected = ask(engine, PROMPTS[0], decoding="ar", max_tokens=20).token_ids
    engine.start()
    good = asyncio.create_task(collect(engine, PROMPTS[0], decoding="ar", max_tokens=20, temperature=0))
    await asyncio.sleep(0)
    forwards = engine.stats().forwards
    for prompt, fields in [([], {}), ([1, 999], {}), ([1], {"block_length": 64}), ([1], {"max_tokens": 5000})]:
        with pytest.raises(InvalidRequest):
            await anext(engine.generate(prompt, GenerationOptions(**fields)))
    assert (await good)[0] == expected
    assert engine.stats().finished.get("cancelled", 0) == 0
    assert engine.stats().forwards <= forwards + 20
    engine.stop()


async def test_a_deadline_can_cut_the_answer() -> None:
    engine = load()
    engine.start()
    fields = {"max_tokens": 900, "ignore_eos": True, "temperature": 0, "latency_slo_ms": 150}
    tokens, finished = await collect(engine, PROMPTS[0], on_deadline="cut", decoding="ar", **fields)
    assert 0 < len(tokens) < 900
    assert finished.finish_reason == "length"
    assert finished.report.cut_at_deadline
    assert finished.report.latency_ms >= 150
    whole, finished = await collect(engine, PROMPTS[0], decoding="ar", **{**fields, "max_tokens": 60})
    assert len(whole) == 60
    assert not finished.report.cut_at_deadline
    assert tokens[:60] == whole[: len(tokens)]
    assert engine.stats().pages_in_use == 0
    engine.stop()


async def test_a_deadline_that_passes_in_the_queue_is_an_empty_answer() -> None:
    engine = load(max_sequences=1)
    engine.start()
    first = engine.generate(PROMPTS[0], LONG)
    await anext(first)
    tokens, finished = await collect(
        engine, PROMPTS[1], on_deadline="cut", decoding="ar", latency_slo_ms=40, temperature=0
    )
    assert tokens == []
    assert finished.report.cut_at_deadline
    assert finished.report.to_dict()["decoding"] == "ar"
    await first.aclose()
    engine.stop()


async def test_stats_are_plain_and_count_what_happened() -> None:
    engine = load()
    engine.start()
    tokens, finished = await collect(engine, PROMPTS[0], decoding="diffusion", max_tokens=20, temperature=0)
    stats = engine.stats()
    data = json.loads(json.dumps(stats.to_dict(), allow_nan=False))
    assert data["forwards"] == finished.report.forwards
    assert data["generated_tokens"] == {"diffusion": len(tokens)}
    assert data["denoise_steps"] == finished.report.denoise_steps
    assert data["prompt_tokens"] == len(PROMPTS[0])
    assert sum(data["finished"].values()) == 1
    assert (data["waiting"], data["running"], data["queue_s"]) == (0, 0, 0)
    assert data["cost_model"]["observations"] == data["forwards"]
    assert 0 < data["forward_s"] <= data["busy_s"]
    stream = engine.generate(PROMPTS[0], LONG)
    await anext(stream)
    assert engine.stats().queue_s > 0
    await stream.aclose()
    engine.stop()


async def test_a_cost_model_is_saved_when_the_engine_stops_and_continued(tmp_path: Path) -> None:
    file = tmp_path / "cost.json"
    engine = load(cost_model=str(file))
    engine.start()
    await collect(engine, PROMPTS[0], max_tokens=20, temperature=0)
    await asyncio.to_thread(engine.stop)
    seen = engine.cost_model.observations
    assert seen > 0
    assert load(cost_model=str(file)).cost_model.observations == seen


def test_a_saved_ladder_is_read_and_a_bad_one_named(tmp_path: Path) -> None:
    assert load_ladder(tmp_path) == ()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(GOLDEN / name, tmp_path / name)
    file = tmp_path / "ladder.json"
    rungs = [AR, self_speculation(32)]
    saved = {"model": "x", "identity": checkpoint_identity(tmp_path), "rungs": [rung.to_dict() for rung in rungs]}
    file.write_text(json.dumps(saved))
    assert load_ladder(tmp_path) == tuple(rungs)
    elsewhere = tmp_path / "measured"
    elsewhere.mkdir()
    file.rename(elsewhere / "ladder.json")
    assert load_ladder(tmp_path) == ()
    assert load_ladder(tmp_path, calibration=elsewhere) == tuple(rungs)
    with pytest.raises(CheckpointError, match=r"which has no ladder\.json"):
        load_ladder(tmp_path, calibration=tmp_path)
    file.write_text(json.dumps({**saved, "identity": "sha256:0"}))
    with pytest.raises(CheckpointError, match="measured on another checkpoint"):
        load_ladder(tmp_path)
    for text in ("{", "[]", '{"rungs": []}', '{"rungs": [{"decoding": "magic"}]}', '{"rungs": 5}'):
        file.write_text(text)
        with pytest.raises(CheckpointError, match=r"ladder\.json"):
            load_ladder(tmp_path)
    file.write_text(json.dumps({"rungs": [AR.to_dict()] * 9}))
    with pytest.raises(CheckpointError, match="9 rungs; allowed: 1 to 8"):
        load_ladder(tmp_path)


def test_settings_out_of_bounds_are_refused_at_start() -> None:
    with pytest.raises(ValueError, match="max_forward_tokens is 100; allowed: at least 128"):
        load(max_forward_tokens=100)
    with pytest.raises(ValueError, match="max_sequences"):
        EngineConfig(max_sequences=0)
    with pytest.raises(ValueError, match="speed"):
        EngineConfig(speed=3)  # type: ignore[call-arg]
