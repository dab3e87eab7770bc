"""What the engine's benchmarks run on: the checkpoint, prompts, and the ladder of `auto`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from engine.engine import Engine
from engine.plan import AR, Rung, self_speculation
from engine.request import equivalent_to_ar
from engine.tiny.tasks import generate

GOLDEN_CASES = Path(__file__).parents[1] / "tests" / "data" / "golden" / "cases.json"


def prompts_of(engine: Engine, count: int, seed: int, max_tokens: int) -> list[list[int]]:
    """Token ids of test tasks whose answers have between half of `max_tokens` and all of it.

    A checkpoint without a tokenizer gets the golden cases' prompts instead.
    """
    tokenizer = engine.tokenizer
    if tokenizer is None:
        cases = json.loads(GOLDEN_CASES.read_text())
        distinct = list(dict.fromkeys(tuple(case["prompt"]) for case in cases))
        return [list(distinct[index % len(distinct)]) for index in range(count)]
    prompts = []
    for task in generate("test", 100 * count, seed):
        if max_tokens / 2 <= len(tokenizer.encode(task.answer, add_bos=False)) < max_tokens:
            prompts.append(tokenizer.render_chat(task.messages))
            if len(prompts) == count:
                break
    return prompts


def auto_ladder(saved: Sequence[Rung]) -> tuple[Rung, ...]:
    """The rungs of the checkpoint's ladder that `auto` may use without an SLO; without one, AR and drafts."""
    return tuple(equivalent_to_ar(saved)) or (AR, *(self_speculation(length) for length in (4, 8, 16, 32)))
