"""Thinking and answer are told apart wherever the pieces are cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from deployments.thinking import ThinkingSplit

CLOSE = 13


def decode(ids: object) -> str:
    return "".join(chr(token) for token in ids if token != CLOSE)  # type: ignore[attr-defined]


letters = st.text(st.characters(min_codepoint=97, max_codepoint=122), max_size=30)


@given(letters, letters, st.lists(st.integers(0, 70), max_size=6), st.integers(0, 4))
def test_pieces_do_not_matter(thought: str, answer: str, cuts: list[int], lag: int) -> None:
    ids = [ord(letter) for letter in thought] + [CLOSE] + [ord(letter) for letter in answer]
    text = thought + answer
    split = ThinkingSplit(CLOSE, decode)
    thinking = said = ""
    sent_ids = sent_text = 0
    for cut in [*sorted(min(cut, len(ids)) for cut in cuts), len(ids)]:
        upto = len(text) if cut == len(ids) else max(sent_text, len(decode(ids[:cut])) - lag)
        more = split.push(ids[sent_ids:cut], text[sent_text:upto])
        sent_ids, sent_text = cut, upto
        thinking, said = thinking + more[0], said + more[1]
    assert (thinking, said) == (thought, answer)


def test_thinking_that_never_ends_is_no_answer() -> None:
    assert ThinkingSplit(CLOSE, decode).push([97, 98], "ab") == ("ab", "")
