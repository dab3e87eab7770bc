"""What happens at a border: thinking sections, forced tokens, and where a sequence ends."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from engine.decoding.border import append_tokens, cut_at_limits, keep_within_thinking, open_thinking, set_pending
from engine.decoding.canvas import forced_offset, open_canvas
from engine.engine import Engine
from engine.request import GenerationOptions
from engine.sequence import Sequence

OPEN, CLOSE, MASK = 12, 13, 100
TOKENS = st.lists(st.sampled_from([OPEN, CLOSE, 50, 51]), max_size=30)


def sequence(engine: Engine, prompt: list[int], **fields: Any) -> Sequence:
    return engine.intake.sequence("test", prompt, GenerationOptions(**fields), None, 0.0)


def longest_legal(tokens: list[int], budget: int, opened: bool) -> int:
    """Tokens before the first that stands where an end of thinking is due."""
    inside = 0 if opened else None
    for place, token in enumerate(tokens):
        if inside is not None and inside >= budget and token != CLOSE:
            return place
        if token == CLOSE:
            inside = None
        elif inside is not None:
            inside += 1
        elif token == OPEN:
            inside = 0
    return len(tokens)


@given(TOKENS, st.integers(0, 8), st.booleans(), st.integers(0, 10))
def test_tokens_are_kept_up_to_where_the_end_of_thinking_is_due(
    golden_engine: Engine, tokens: list[int], budget: int, opened: bool, split: int
) -> None:
    prompt = [1, OPEN] if opened else [1]
    one = sequence(golden_engine, prompt, max_thinking_tokens=budget)
    legal = longest_legal(tokens, budget, opened)
    split = min(split, legal)
    append_tokens(one, tokens[:split])
    assert split + keep_within_thinking(one, tokens[split:]) == legal


@given(TOKENS, st.integers(0, 8), st.booleans())
def test_tokens_set_one_by_one_never_overstay(
    golden_engine: Engine, tokens: list[int], budget: int, opened: bool
) -> None:
    one = sequence(golden_engine, [1, OPEN] if opened else [1], max_thinking_tokens=budget)
    for token in tokens:
        set_pending(one, token)
    assert longest_legal(one.output, budget, opened) == len(one.output)
    differing = [place for place, token in enumerate(tokens) if one.output[place] != token]
    assert all(one.output[place] == CLOSE for place in differing)


def test_without_a_budget_thinking_goes_on(golden_engine: Engine) -> None:
    one = sequence(golden_engine, [1, OPEN])
    assert keep_within_thinking(one, [50] * 100) == 100
    assert forced_offset(one) is None


def test_a_second_opening_does_not_extend_the_budget(golden_engine: Engine) -> None:
    one = sequence(golden_engine, [1], max_thinking_tokens=4)
    append_tokens(one, [OPEN, 50, OPEN, 50])
    assert forced_offset(one) == 5
    assert keep_within_thinking(one, [50, 50]) == 1


def test_the_canvas_ends_where_the_end_of_thinking_is_due(golden_engine: Engine) -> None:
    one = sequence(golden_engine, [1, OPEN], max_thinking_tokens=5, decoding="diffusion", block_length=16)
    set_pending(one, 50)
    open_canvas(one, MASK)
    assert one.canvas is not None
    assert one.canvas.tokens == [50, MASK, MASK, MASK, MASK]
    assert one.canvas.masked == [False, True, True, True, True]


def test_the_prompt_says_whether_thinking_is_open() -> None:
    assert open_thinking([1, OPEN, 50], OPEN, CLOSE)
    assert not open_thinking([1, OPEN, 50, CLOSE, 51], OPEN, CLOSE)
    assert not open_thinking([1, 50], OPEN, CLOSE)
    assert open_thinking([OPEN, CLOSE, OPEN], OPEN, CLOSE)


@given(st.lists(st.sampled_from([50, 51, 11]), min_size=1, max_size=20), st.integers(1, 25), st.integers(0, 19))
def test_a_sequence_ends_at_its_first_stop_id_or_at_max_tokens(
    golden_engine: Engine, tokens: list[int], max_tokens: int, before: int
) -> None:
    one = sequence(golden_engine, [1], max_tokens=max_tokens)
    before = min(before, len(tokens), tokens.index(11) if 11 in tokens else len(tokens), max_tokens - 1)
    append_tokens(one, tokens)
    cut_at_limits(one, before)
    allowed = tokens[:max_tokens]
    if 11 in allowed:
        assert one.output == allowed[: allowed.index(11) + 1]
        assert one.finish_reason == "stop"
    elif len(tokens) >= max_tokens:
        assert one.output == allowed
        assert one.finish_reason == "length"
    else:
        assert one.output == tokens
        assert one.finish_reason is None
