"""Going on after a failure: what the client has is never sent twice, what it lacks is never lost."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.resume import already_over, resume_point, shifted_options, shifted_plan, thinking_used


def decode(ids: Sequence[int]) -> str:
    """A byte-level vocabulary: an id is a byte."""
    return bytes(ids).decode("utf-8", errors="replace")


@given(st.text(max_size=40), st.data())
def test_the_seam_is_invisible(text: str, data: st.DataObject) -> None:
    ids = list(text.encode())
    cut = data.draw(st.integers(0, len(ids)))
    committed = ids[:cut]
    whole = committed.copy()
    while whole and "\ufffd" in decode(whole) and "\ufffd" not in text:
        whole.pop()
    held_back = data.draw(st.integers(0, 3))
    sent = decode(whole)[: max(0, len(decode(whole)) - held_back)]
    point = resume_point(committed, sent, decode)
    rest = decode(ids[point.tokens :])
    assert sent + rest[point.repeated_text :] == text
    assert point.tokens <= cut


def test_without_a_tokenizer_all_tokens_count() -> None:
    assert resume_point([4, 5, 6], "", None).tokens == 3


@pytest.mark.parametrize(
    ("ids", "limit", "end"), [([1, 11], None, "stop"), ([1, 2], 2, "length"), ([1, 2], 3, None), ([], None, None)]
)
def test_an_answer_that_had_ended_is_over(ids: list[int], limit: int | None, end: str | None) -> None:
    assert already_over(ids, limit, {11}) == end


def test_limits_and_schedules_shrink() -> None:
    assert shifted_options({"max_tokens": 50, "min_tokens": 5, "seed": 3}, 20, thought=0) == {
        "max_tokens": 30, "min_tokens": 0, "seed": 3,
    }  # fmt: skip
    plan = {"schedule": [{"from_token": 0, "k": 1}, {"from_token": 16, "k": 2}, {"from_token": 64, "k": 3}]}
    assert shifted_plan(plan, 32)["schedule"] == [{"from_token": 0, "k": 2}, {"from_token": 32, "k": 3}]
    assert shifted_plan({"schedule": [], "expected_tokens": 40}, 32) == {"schedule": [], "expected_tokens": 8}
    assert shifted_plan({"schedule": [], "expected_tokens": 20}, 32)["expected_tokens"] == 1


OPEN, CLOSE = 12, 13


@pytest.mark.parametrize(
    ("prompt", "committed", "used"),
    [
        ([1, 2], [5, 6, 7], 0),
        ([1, OPEN], [5, 6, 7], 3),
        ([1, OPEN], [5, 6, CLOSE, 7, 8], 0),
        ([1, OPEN, 2, CLOSE], [5, 6], 0),
        ([1], [5, OPEN, 6, 7], 2),
        ([1], [OPEN, 6, CLOSE, 7, OPEN, 8], 1),
        ([1, OPEN], [5, OPEN, 6], 3),
        ([1], [OPEN, 6, OPEN, 7], 3),
    ],
)
def test_only_tokens_of_the_open_thinking_section_count(prompt: list[int], committed: list[int], used: int) -> None:
    assert thinking_used(prompt, committed, OPEN, CLOSE) == used
    left = shifted_options({"max_thinking_tokens": 9, "max_tokens": 99}, len(committed), used)
    assert left == {"max_thinking_tokens": 9 - used, "max_tokens": 99 - len(committed)}
