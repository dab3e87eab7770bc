"""Forwards before the first request, so that the first plan rests on this machine's own times."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.plan import AR, Plan, diffusion
from engine.request import GenerationOptions

if TYPE_CHECKING:
    from collections.abc import Iterator

    from engine.engine import Engine

BATCHES = (1, 1, 4, 8)
PROMPT_TOKENS = (8, 96, 160)
OUTPUT_TOKENS = 32


def warm_up(engine: Engine) -> None:
    """Runs AR and a two-step diffusion at a few batch sizes and prompt lengths; about 150 forwards."""
    rng = random.Random(0)
    block = engine.model_config.block_size
    room = engine.intake.capacity - OUTPUT_TOKENS
    for salt, batch in enumerate(BATCHES):
        requests = []
        for index in range(batch):
            length = min(PROMPT_TOKENS[index % len(PROMPT_TOKENS)], room)
            rung = AR if index % 2 == 0 else diffusion(block, min(2, block))
            options = GenerationOptions(
                max_tokens=OUTPUT_TOKENS, temperature=0, ignore_eos=True, seed=0, cache_salt=f"warm-up {salt} {index}"
            )
            prompt = [rng.randrange(engine.model_config.vocab_size) for _ in range(length)]
            requests.append((prompt, options, Plan(ladder=(rung,), reason="warm-up")))
        _exhaust(engine.run_sync(requests))


def _exhaust(events: Iterator[object]) -> None:
    for _ in events:
        pass
