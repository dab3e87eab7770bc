"""The step budget is a guarantee for every K and every block length, also where the context ends inside a block."""

from __future__ import annotations

import pytest

from engine.engine import Engine
from tests.engine.serving import PROMPTS, answer, ask, load

BLOCK_SIZE = 32
PAIRS = [(length, steps) for length in range(1, BLOCK_SIZE + 1) for steps in range(1, length + 1)]


def requests(length: int, steps: int, **fields: object) -> tuple[list[int], dict[str, object]]:
    """A block and the pending token after it, which AR would also give: exactly one denoised block."""
    return PROMPTS[(length * 7 + steps) % len(PROMPTS)], {
        "decoding": "diffusion",
        "block_length": length,
        "refinement_steps": steps,
        "max_tokens": length + 1,
        "temperature": 0,
        "ignore_eos": True,
        **fields,
    }


def test_without_early_commit_every_block_takes_exactly_the_smaller_of_its_budget_and_its_masks(
    golden_engine: Engine,
) -> None:
    answers = answer(golden_engine, [requests(length, steps) for length, steps in PAIRS])
    for (length, steps), one in zip(PAIRS, answers, strict=True):
        assert one.report.denoise_steps == min(steps, length - 1), (length, steps)
        assert one.report.blocks == 1, (length, steps)
        # Prefill (in a full house perhaps in pieces), the steps, and the commit that yields the token after the block.
        assert one.report.forwards >= 1 + one.report.denoise_steps + 1, (length, steps)
        assert len(one.token_ids) == length + 1
        assert 100 not in one.token_ids


def test_a_threshold_never_takes_more_steps_than_the_budget(golden_engine: Engine) -> None:
    some = PAIRS[::9]
    answers = answer(golden_engine, [requests(length, steps, threshold=0.99) for length, steps in some])
    for (length, steps), one in zip(some, answers, strict=True):
        assert one.report.denoise_steps <= min(steps, length - 1), (length, steps)
        assert len(one.token_ids) == length + 1


def test_a_threshold_of_zero_is_one_step(golden_engine: Engine) -> None:
    one = answer(golden_engine, [requests(32, 32, threshold=0.0)])[0]
    assert one.report.denoise_steps == 1


@pytest.mark.parametrize("steps", [1, 2, 5, 32])
@pytest.mark.parametrize("length", [3, 10, 32])
def test_the_budget_holds_in_every_block_of_a_long_answer(golden_engine: Engine, length: int, steps: int) -> None:
    blocks = 4
    fields = {"max_tokens": blocks * length + 1, "refinement_steps": min(steps, length)}
    one = answer(golden_engine, [requests(length, min(steps, length), **fields)])[0]
    assert one.report.denoise_steps == blocks * min(steps, length - 1)
    assert one.report.forwards == 1 + one.report.denoise_steps + blocks


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 32])
@pytest.mark.parametrize("length", [7, 10, 24, 32])
def test_the_budget_holds_where_the_context_ends_inside_the_block(length: int, steps: int) -> None:
    context, prompt = 64, [1, *range(40, 75)]
    small = load(kv_tokens=context)
    room = context - len(prompt)
    steps = min(steps, length)
    one = ask(
        small,
        prompt,
        decoding="diffusion",
        block_length=length,
        refinement_steps=steps,
        max_tokens=room,
        ignore_eos=True,
    )
    whole, rest = divmod(room, length)
    assert len(one.token_ids) == room
    assert one.finish_reason == "length"
    # A last block of one token is the pending one: nothing is left to denoise.
    assert one.report.denoise_steps == whole * min(steps, length - 1) + (min(steps, rest - 1) if rest else 0)


def test_a_whole_context_can_be_filled_in_every_mode() -> None:
    small = load(kv_tokens=64)
    prompt = [1, *range(40, 60)]
    modes = [
        {"decoding": "ar"},
        {"decoding": "self_speculation", "block_length": 32},
        {"decoding": "diffusion", "block_length": 32, "threshold": 0.9},
        {"decoding": "diffusion", "block_length": 32, "refinement_steps": 2, "audit": "exact"},
    ]
    for mode in modes:
        one = ask(small, prompt, **mode, ignore_eos=True)
        assert len(prompt) + len(one.token_ids) == 64
        assert one.finish_reason == "length"


def test_blocks_of_one_token_are_autoregressive(golden_engine: Engine) -> None:
    for prompt in PROMPTS[::2]:
        single = ask(golden_engine, prompt, decoding="diffusion", block_length=1, refinement_steps=1, max_tokens=20)
        ar = ask(golden_engine, prompt, decoding="ar", max_tokens=20)
        assert single.token_ids == ar.token_ids
        assert single.report.denoise_steps == 0
        assert single.report.forwards == ar.report.forwards == len(ar.token_ids)


def test_self_speculation_costs_a_draft_and_a_look_per_round(golden_engine: Engine) -> None:
    for prompt in PROMPTS[1::2]:
        one = ask(golden_engine, prompt, decoding="self_speculation", block_length=32, max_tokens=30)
        assert one.report.denoise_steps == 0
        assert one.report.forwards == 1 + 2 * one.report.draft_steps
        assert one.report.blocks == one.report.draft_steps


def test_the_mask_id_is_text_in_a_prompt_and_never_an_answer(golden_engine: Engine) -> None:
    prompt = [1, 100, 61, 100, 62, 100, 61, 100]
    for fields in ({"decoding": "ar"}, {"decoding": "diffusion", "block_length": 8, "refinement_steps": 2}):
        one = ask(golden_engine, prompt, **fields, max_tokens=24, ignore_eos=True)
        assert len(one.token_ids) == 24
        assert 100 not in one.token_ids
    other = ask(golden_engine, [token if token != 100 else 99 for token in prompt], decoding="ar", max_tokens=24)
    assert other.finish_reason is not None
