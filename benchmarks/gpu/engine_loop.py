"""The engine's loop on a model of this process, driven step by step.

`EngineCore` is what the engine's thread runs (`engine/core.py`): schedule, forward, postprocess. Requests are put into
it as `engine/intake.py` would; so nothing here needs what only servers need (pydantic), and no thread or asyncio client
disturbs the measurement.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from engine.core import EngineCore
from engine.cost_model import ForwardCostModel
from engine.events import Delta, Report
from engine.executor import Executor
from engine.graphs import Record
from engine.kv_cache import PagePool
from engine.model.transformer import Transformer
from engine.output import Output
from engine.plan import Plan, Rung
from engine.sequence import Limits, Sampling
from engine.sequence import Sequence as Served

FLUSH_TOKENS, FLUSH_S = 16, 0.05
"""The engine's defaults (`engine/config.py`)."""


@dataclass(frozen=True, slots=True)
class LoopSettings:
    """The fields of `EngineConfig` that the loop reads, with its defaults."""

    max_sequences: int = 256
    max_forward_tokens: int = 2048
    prefill_chunk: int = 256


@dataclass(slots=True)
class Answers:
    """What came of some requests.

    Attributes:
        tokens: of each request. seconds: from the first step to the last. forwards: that the engine ran.
        slot_forwards: forwards that each request took part in, its prefill included.
    """

    tokens: list[list[int]] = field(default_factory=list)
    seconds: float = 0.0
    forwards: int = 0
    slot_forwards: list[int] = field(default_factory=list)


def core_of(model: Transformer, kv_tokens: int, record: Record | None = None) -> EngineCore:
    """An engine's loop around `model` with K/V for so many tokens; `record`: its forwards run in graphs."""
    page_size = model.config.block_size
    executor = Executor(model, -(-kv_tokens // page_size) + 1, page_size)
    if record is not None:
        executor.record_graphs(record)
    return core_around(executor)


def core_around(executor: Executor) -> EngineCore:
    """An engine's loop around an executor, alone or rank 0 of several."""
    pages = executor.kv.shape[1] // executor.page_size
    config = cast(Any, LoopSettings())
    pool = PagePool(pages, executor.page_size, reuse=False)
    return EngineCore(executor, pool, ForwardCostModel(), config, executor.model.config.mask_token_id)


def answer(
    core: EngineCore,
    rung: Rung,
    prompts: Sequence[list[int]],
    max_tokens: int,
    after_step: Callable[[], None] = lambda: None,
) -> Answers:
    """Answers all prompts at once, greedily and past every EOS, on one rung.

    Args:
        after_step: called after each of the loop's steps.
    """
    served = [_request(core, index, rung, prompt, max_tokens) for index, prompt in enumerate(prompts)]
    answers = Answers(tokens=[[] for _ in served])
    place = {sequence: index for index, sequence in enumerate(served)}
    before, begun = core.counters.forwards, time.perf_counter()
    for sequence in served:
        core.add(sequence)
    while not core.idle:
        for sequence, event in core.step():
            if isinstance(event, Delta):
                answers.tokens[place[sequence]] += event.token_ids
        after_step()
    answers.seconds = time.perf_counter() - begun
    answers.forwards = core.counters.forwards - before
    answers.slot_forwards = [sequence.report.forwards for sequence in served]
    return answers


def _request(core: EngineCore, index: int, rung: Rung, prompt: list[int], max_tokens: int) -> Served:
    context = core.pool.total * core.pool.page_size
    return Served(
        id=f"request-{index}",
        tokens=list(prompt),
        prompt_tokens=len(prompt),
        sampling=Sampling(temperature=0.0, top_k=-1, top_p=1.0, seed=index),
        limits=Limits(max_tokens=max_tokens, min_tokens=0, stop_ids=frozenset(), context=context),
        plan=Plan(ladder=(rung,)),
        rung=rung,
        out=Output(None, [], FLUSH_TOKENS, FLUSH_S),
        report=Report(seed=index, prompt_tokens=len(prompt)),
        arrival_s=core.clock(),
    )
