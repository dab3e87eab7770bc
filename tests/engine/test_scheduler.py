"""Slots of a forward: the budget holds, nobody starves, prompts and canvases advance together."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from engine.scheduler import Want, share_slots

MAX_TOKENS = 128
LONGEST_CANVAS = 32


@st.composite
def wants(draw: st.DrawFn) -> list[Want]:
    """Sequences as an engine has them: canvases of up to a block, and prompts of any length."""
    count = draw(st.integers(0, 24))
    arrivals = draw(st.permutations(range(count)))
    made = []
    for index in range(count):
        prefill = draw(st.booleans())
        tokens = draw(st.integers(1, 400 if prefill else LONGEST_CANVAS))
        made.append(Want(index, tokens, prefill, draw(st.integers(-1, 9)), float(arrivals[index])))
    return made


CHUNKS = st.integers(1, 300)


@given(wants(), CHUNKS)
def test_a_forward_never_has_more_tokens_than_its_budget(asked: list[Want], chunk: int) -> None:
    grants = share_slots(asked, MAX_TOKENS, chunk)
    assert sum(grant.tokens for grant in grants) <= MAX_TOKENS
    assert len({grant.index for grant in grants}) == len(grants)


@given(wants(), CHUNKS)
def test_canvases_get_all_or_nothing_and_prompts_at_most_a_chunk(asked: list[Want], chunk: int) -> None:
    for grant in share_slots(asked, MAX_TOKENS, chunk):
        want = asked[grant.index]
        if want.prefill:
            assert 1 <= grant.tokens <= min(chunk, want.tokens)
        else:
            assert grant.tokens == want.tokens


@given(wants(), CHUNKS)
def test_no_slot_is_left_that_somebody_could_use(asked: list[Want], chunk: int) -> None:
    granted = {grant.index: grant.tokens for grant in share_slots(asked, MAX_TOKENS, chunk)}
    left = MAX_TOKENS - sum(granted.values())
    for want in asked:
        if want.prefill and granted.get(want.index, 0) < min(chunk, want.tokens):
            assert left == 0
        # What is kept for prompts and not used by them is not handed back: at most one chunk.
        if not want.prefill and want.index not in granted:
            assert left < want.tokens + min(chunk, MAX_TOKENS // 4)


@given(wants(), CHUNKS)
def test_a_full_house_leaves_a_chunk_to_the_oldest_prompt(asked: list[Want], chunk: int) -> None:
    prompts = [want for want in asked if want.prefill]
    if not prompts:
        return
    oldest = min(prompts, key=lambda want: want.arrival)
    granted = {grant.index: grant.tokens for grant in share_slots(asked, MAX_TOKENS, chunk)}
    assert granted[oldest.index] >= min(chunk, MAX_TOKENS // 4, oldest.tokens)


@given(wants(), CHUNKS)
def test_every_canvas_is_served_again_within_as_many_forwards_as_there_are_sequences(
    asked: list[Want], chunk: int
) -> None:
    waited = {want.index: 0 for want in asked if not want.prefill}
    state = {want.index: want for want in asked}
    for forward in range(10, 10 + 3 * len(asked) + 1):
        served = {grant.index for grant in share_slots(list(state.values()), MAX_TOKENS, chunk)}
        for index in waited:
            if index in served:
                waited[index] = 0
                state[index] = replace(state[index], last_served=forward)
            else:
                waited[index] += 1
                assert waited[index] <= len(asked)


@given(wants(), st.integers(1, 64))
def test_every_prompt_is_read_to_its_end(asked: list[Want], chunk: int) -> None:
    state = {want.index: want for want in asked}
    forwards = 0
    while any(want.prefill for want in state.values()):
        forwards += 1
        assert forwards <= sum(want.tokens for want in asked if want.prefill)
        for grant in share_slots(list(state.values()), MAX_TOKENS, chunk):
            want = state[grant.index]
            if want.prefill:
                left = want.tokens - grant.tokens
                state[grant.index] = replace(want, tokens=max(left, 1), prefill=left > 0, last_served=forwards)


def test_a_canvas_that_does_not_fit_lets_smaller_ones_pass_and_goes_first_next_time() -> None:
    served_long_ago = [Want(index, 30, False, 1, float(index)) for index in range(4)]
    large = Want(4, 30, False, 2, 4.0)
    small = Want(5, 5, False, 3, 5.0)
    first = share_slots([*served_long_ago, large, small], MAX_TOKENS, 32)
    assert [grant.index for grant in first] == [0, 1, 2, 3, 5]
    again = [replace(want, last_served=9) for want in [*served_long_ago, small]]
    assert share_slots([*again, large], MAX_TOKENS, 32)[0].index == 4


def test_prompts_are_read_in_their_order_of_arrival() -> None:
    asked = [Want(0, 300, True, -1, 2.0), Want(1, 300, True, -1, 1.0)]
    assert [(grant.index, grant.tokens) for grant in share_slots(asked, MAX_TOKENS, 100)] == [(1, 100), (0, 28)]
