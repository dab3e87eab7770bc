"""What a replica does before the first request: forwards, so that the first plan rests on this machine's own times, and
the first use of what is compiled then."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from engine.decoding.last_blocks import next_block
from engine.plan import AR, Plan, Rung, diffusion
from engine.request import GenerationOptions

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engine.engine import Engine

BATCHES = (1, 1, 4, 8)
PROMPT_TOKENS = (8, 96, 160)
OUTPUT_TOKENS = 32
CROWDS = (1, 8)
KIND_PROMPT_TOKENS = (16, 160)
FORWARDS = 8
"""Of every kind that is looked at."""


def warm_up(engine: Engine) -> None:
    """Runs AR and a two-step diffusion at a few batch sizes and prompt lengths, about 150 forwards.

    Then a few forwards full of each length of canvas that the ladder has: where the fit finds rungs equal, what they
    deviate from it decides (`engine/deviation.py`), and traffic itself would only ever show the rung in use.
    """
    rng = random.Random(0)
    _compile(engine)
    block = engine.model_config.block_size
    for batch in BATCHES:
        rungs = [AR if index % 2 == 0 else diffusion(block, min(2, block)) for index in range(batch)]
        lengths = [PROMPT_TOKENS[index % len(PROMPT_TOKENS)] for index in range(batch)]
        _run(engine, rng, rungs, lengths, OUTPUT_TOKENS)
    for length in sorted({rung.block_length for rung in engine.ladder}):
        rung = AR if length == 1 else diffusion(length, min(FORWARDS - 1, length - 1))
        for crowd in CROWDS:
            count = min(crowd, engine.config.max_sequences)
            # Of different lengths, as real ones are: equal ones share more than those.
            prompts = [rng.randint(*KIND_PROMPT_TOKENS) for _ in range(count)]
            _run(engine, rng, [rung] * count, prompts, max(length, FORWARDS))


def _compile(engine: Engine) -> None:
    """Looks ahead for a request with a deadline that nobody sends: what that needs is compiled at its first use."""
    options = GenerationOptions(max_tokens=1, latency_slo_ms=1000.0)
    sequence = engine.intake.sequence("warm-up", [1], options, Plan(ladder=(AR,)), 0.0)
    view = engine.core.outlook.view([sequence], 0.0)
    view.curve.room_s(view.fixed_s, view.ride.forward_s, 2 * view.ride.forward_s)
    next_block(view.prices.blocks(sequence.ladder), 0, 0, engine.core.outlook.lengths.like(1), 1, 2)


def _run(engine: Engine, rng: random.Random, rungs: Sequence[Rung], lengths: Sequence[int], output: int) -> None:
    """Answers random prompts of these lengths on these rungs, all at once, `output` tokens each."""
    room = engine.intake.capacity - output
    options = GenerationOptions(max_tokens=output, temperature=0, ignore_eos=True, seed=0)
    requests = [
        (
            [rng.randrange(engine.model_config.vocab_size) for _ in range(min(length, room))],
            options.model_copy(update={"cache_salt": f"warm-up {rng.random()}"}),
            Plan(ladder=(rung,), reason="warm-up"),
        )
        for rung, length in zip(rungs, lengths, strict=True)
    ]
    for _ in engine.run_sync(requests):
        pass
